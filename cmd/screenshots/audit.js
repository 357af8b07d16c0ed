// Returns what is measurably wrong with the page as a list of sentences.
(() => {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".log, .vh, .defs"));
    found.push(`scrolls sideways: ${root.scrollWidth} > ${root.clientWidth}, for example ${wide.slice(0, 3).map((e) => `${e.tagName}.${e.className?.baseVal ?? e.className}`).join(" ")}`);
  }

  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const ctx = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (c) => { ctx.clearRect(0, 0, 1, 1); ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); return [...ctx.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => { const f = (v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return rgba(getComputedStyle(document.body).backgroundColor); };
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const e = n.parentElement;
    if (!n.data.trim() || !e.checkVisibility() || e.closest(".vh, script, noscript, option, .skip, [disabled]")) continue;
    // A column that was squeezed to a letter or two breaks its words on every line.
    const word = Math.max(...n.data.trim().split(/\s+/).map((w) => w.length));
    if (word > 5 && !e.closest("svg, textarea")) {
      const range = document.createRange();
      range.selectNodeContents(n);
      const lines = new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size;
      if (lines > 4 && n.data.trim().length / lines < 4) found.push(`squeezed: “${n.data.trim().slice(0, 30)}” on ${lines} lines (${e.tagName}.${e.className})`);
    }
    const fg = rgba(getComputedStyle(e).color), bg = behind(e);
    const a = light(fg) + .05, b = light(bg) + .05;
    const ratio = Math.max(a, b) / Math.min(a, b);
    const key = `${e.tagName}.${e.className} ${fg} ${bg}`;
    if (ratio < 4.5 && !seen.has(key)) { seen.add(key); found.push(`contrast ${ratio.toFixed(2)} of “${n.data.trim().slice(0, 30)}” (${e.tagName}.${e.className})`); }
  }

  if (innerWidth < 761) {
    for (const e of document.querySelectorAll("button, input:not([type=hidden]):not(.vh), select, textarea, a.btn, .tab, .sheet a")) {
      if (!e.checkVisibility() || e.closest(".vh, .skip, dialog") || e.matches("[type=checkbox], [type=radio], [type=file]")) continue;
      const r = e.getBoundingClientRect();
      if (r.height < 35.5) found.push(`touch target of ${r.height.toFixed(0)} px: ${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 20)}`);
    }
  }
  return found;
})()
