// Runs before the first paint, so that a remembered theme does not flash. "auto" follows the system.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage is switched off: follow the system */ }
