// What HTML, CSS and htmx cannot do: theme, keys, the search-or-jump box, copying, errors of requests, and live swaps
// that must not take away a button under a finger. Everything is delegated from the document, so nothing has to be
// set up again after a swap.
const $ = (sel, root = document) => root.querySelector(sel);
const $$ = (sel, root = document) => [...root.querySelectorAll(sel)];
const say = (text) => { const el = $("#say"); if (el) el.textContent = text; };

// Theme: automatic, light, dark, and around again.
function theme(next) {
  const root = document.documentElement;
  const now = root.dataset.theme || "auto";
  if (next) {
    const to = { auto: "light", light: "dark", dark: "auto" }[now];
    if (to === "auto") delete root.dataset.theme; else root.dataset.theme = to;
    try { localStorage.setItem("theme", to); } catch { /* not remembered */ }
    say(`Theme: ${to}`);
  }
  const label = root.dataset.theme || "automatic";
  for (const b of $$("[data-theme-toggle]")) { b.title = `Theme: ${label}`; b.setAttribute("aria-label", `Theme: ${label}. Change`); }
}

document.addEventListener("click", (e) => {
  const el = e.target.closest("[data-theme-toggle], [data-jump], [data-keys], [data-close], [data-copy]");
  if (!el) return;
  if (el.matches("[data-theme-toggle]")) theme(true);
  if (el.matches("[data-jump]")) { e.preventDefault(); open("jump"); }
  if (el.matches("[data-keys]")) { e.preventDefault(); open("keys"); }
  if (el.matches("[data-close]")) el.closest("dialog").close();
  if (el.matches("[data-copy]")) copy(el);
});

// A click beside a dialog closes it; so does Escape, by itself.
document.addEventListener("click", (e) => { if (e.target.matches("dialog")) e.target.close(); });
// The sheet of the bottom bar closes when something else is touched.
document.addEventListener("click", (e) => { for (const d of $$(".bottom details[open]")) if (!d.contains(e.target)) d.open = false; });

function open(id) {
  const d = document.getElementById(id);
  if (!d || d.open) return;
  d.showModal();
  const input = $("input", d);
  if (input) { input.value = ""; htmx.trigger(input, "input"); }
}

async function copy(button) {
  const text = document.getElementById(button.dataset.copy).textContent;
  let done = false;
  try { await navigator.clipboard.writeText(text); done = true; } catch {
    // Plain http on another machine has no clipboard: select it, so that one key copies.
    const range = document.createRange();
    range.selectNodeContents(document.getElementById(button.dataset.copy));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  }
  const label = $("span", button) || button;
  const before = button.dataset.label ||= label.textContent;
  label.textContent = done ? "Copied" : "Selected";
  say(label.textContent);
  setTimeout(() => { label.textContent = before; }, 1600);
}

// Keys. Letters do nothing while somebody types.
document.addEventListener("keydown", (e) => {
  if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === "k") { e.preventDefault(); open("jump"); return; }
  if ($("#jump")?.open) { jumpKeys(e); return; }
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select, dialog, [contenteditable]")) return;
  const rows = $$("[data-row]").filter((r) => $("a", r));
  const at = rows.findIndex((r) => r.contains(document.activeElement));
  const go = (i) => { const a = rows[Math.max(0, Math.min(rows.length - 1, i))]?.querySelector("a"); a?.focus(); a?.scrollIntoView({ block: "nearest" }); };
  const press = (sel) => (at >= 0 ? $(sel, rows[at]) : $(`#head ${sel}, #now ${sel}`))?.click();
  const keys = {
    "/": () => open("jump"), "?": () => open("keys"), j: () => go(at + 1), k: () => go(at < 0 ? 0 : at - 1),
    l: () => press("[data-load]"), u: () => press("[data-unload]"),
  };
  if (!keys[e.key]) return;
  e.preventDefault();
  keys[e.key]();
});

function jumpKeys(e) {
  // By itself, Escape would empty the box first and close it at the second press.
  if (e.key === "Escape") { e.preventDefault(); $("#jump").close(); return; }
  const hits = $$("#jump .hits a");
  const at = hits.findIndex((a) => a.classList.contains("at"));
  const mark = (i) => { hits.forEach((a, n) => a.classList.toggle("at", n === i)); hits[i]?.scrollIntoView({ block: "nearest" }); };
  if (e.key === "ArrowDown") { e.preventDefault(); mark(Math.min(at + 1, hits.length - 1)); }
  if (e.key === "ArrowUp") { e.preventDefault(); mark(Math.max(at - 1, 0)); }
  if (e.key === "Enter" && e.target.matches("input")) { e.preventDefault(); (hits[at] || hits[0])?.click(); }
}
document.addEventListener("submit", (e) => { if (e.target.matches("[data-nosubmit]")) e.preventDefault(); }, true);

// Empty fields do not belong into an address that people share.
document.addEventListener("htmx:configRequest", (e) => {
  if (e.detail.verb !== "get") return;
  for (const [k, v] of [...e.detail.formData.entries()]) if (v === "") e.detail.formData.delete(k);
});

// The form fills itself in: what the preview suggests goes into fields that are empty, or that hold what an earlier
// preview put there; never over what somebody typed. Choosing one of several sets the format with it.
const fillNote = (field) => { const note = document.getElementById(`${field.id}-filled`); if (note) note.hidden = !field.value || field.value !== field.dataset.filled; };
function fill() {
  for (const id of ["f-model_id", "f-model_format"]) {
    const field = document.getElementById(id), offer = $(`#preview [data-fill="${id}"]`);
    if (!field || field.type === "hidden" || !$("#preview [name=offered]")) continue;
    if (document.activeElement === field && field.value !== "" ) continue;
    if (field.value !== "" && field.value !== field.dataset.filled) continue;
    field.value = field.dataset.filled = offer ? offer.value : "";
    fillNote(field);
  }
}
document.addEventListener("htmx:afterSwap", (e) => { if (e.detail.target?.id === "preview") fill(); });
document.addEventListener("input", (e) => { if (e.target.dataset.filled !== undefined) fillNote(e.target); });
document.addEventListener("change", (e) => {
  if (!e.target.matches("[name=offer][data-format]")) return;
  const format = $("#f-model_format"), was = $("#preview [name=filled_model_format]");
  format.value = format.dataset.filled = e.target.dataset.format;
  if (was) was.value = format.value;
  fillNote(format);
});

// Errors: a refused form (422) and a whole page come back where they belong, anything else above the content.
document.addEventListener("htmx:beforeSwap", (e) => {
  const d = e.detail, status = d.xhr.status;
  if (status < 400) return;
  if (status === 401) { d.shouldSwap = false; location.assign(`/signin?next=${encodeURIComponent(location.pathname + location.search)}`); return; }
  d.shouldSwap = true;
  if (status !== 422 && !d.boosted) { d.target = $("#flash"); d.swapOverride = "innerHTML"; }
});
document.addEventListener("htmx:sendError", () => {
  const p = document.createElement("p");
  p.className = "note bad";
  p.textContent = "The server cannot be reached. Nothing was changed; try again when it is back.";
  $("#flash")?.replaceChildren(p);
});

// After a page: tell where we are; after a refused form: go to the first field at fault.
document.addEventListener("htmx:afterSettle", (e) => {
  theme(false);
  if (e.target !== document.body) { if (e.detail?.xhr?.status === 422) $("[aria-invalid=true]", e.target)?.focus(); return; }
  logsToEnd();
  const wrong = $("[aria-invalid=true]");
  if (wrong) wrong.focus(); else if (document.activeElement === document.body) $("#main")?.focus({ preventScroll: true });
});

// Live: say so when the stream is lost, and keep the log at its end unless somebody scrolled up.
document.addEventListener("htmx:sseError", () => { const o = $("#offline"); if (o) o.hidden = false; });
document.addEventListener("htmx:sseOpen", () => { const o = $("#offline"); if (o) o.hidden = true; });
// A browser opens six connections to a host at most: a tab that nobody sees gives its stream back after half a minute,
// and one that is left at once.
let stream = null, parked = false, timer = 0;
function park() { stream?.close(); parked = true; }
function wake() {
  clearTimeout(timer);
  if (!parked) return;
  parked = false;
  for (const el of $$("[sse-connect], [sse-connect] [sse-swap]")) htmx.trigger(el, "htmx:afterProcessNode");
}
document.addEventListener("htmx:sseOpen", (e) => { stream = e.detail.source; });
document.addEventListener("visibilitychange", () => { if (document.hidden) timer = setTimeout(park, 30000); else wake(); });
addEventListener("pagehide", park);
addEventListener("pageshow", wake);

// A live swap waits while a button in it is pressed or its answer is on the way (both would be lost with it), and while a
// question is open in it. What waited is shown as soon as nothing is in the way: the newest, or of rows all of them.
let pressed = null;
const held = new Map();
const inTheWay = (el) => {
  const place = el.matches("[data-sink]") ? $("[data-row]")?.parentElement : el;
  if (!place) return false;
  return (pressed && place.contains(pressed)) || $(".htmx-request, [data-asking]", place);
};
function show() {
  for (const [el, list] of [...held]) {
    if (el.isConnected && inTheWay(el)) continue;
    held.delete(el);
    for (const html of list) if (el.isConnected) htmx.swap(el, html, { swapStyle: el.getAttribute("hx-swap") || "innerHTML" });
  }
}
document.addEventListener("pointerdown", (e) => { pressed = e.target; });
for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => setTimeout(() => { pressed = null; show(); }, 0));
document.addEventListener("htmx:afterRequest", () => setTimeout(show, 0));
document.addEventListener("htmx:sseBeforeMessage", (e) => {
  const el = e.target, log = el.matches(".log") ? el : null;
  if (log) { log.dataset.end = log.scrollHeight - log.scrollTop - log.clientHeight < 24 ? "1" : ""; return; }
  if (!inTheWay(el)) { held.delete(el); return; }
  e.preventDefault();
  held.set(el, el.matches("[data-sink]") ? [...(held.get(el) || []), e.detail.data] : [e.detail.data]);
});
document.addEventListener("htmx:sseMessage", (e) => {
  const log = e.target;
  if (log.id === "log-box") logsToEnd(); // a whole new log begins at its end
  if (!log.matches?.(".log")) return;
  while (log.childElementCount > 500) log.firstElementChild.remove();
  if (log.dataset.end) log.scrollTop = log.scrollHeight;
});

const logsToEnd = () => { for (const log of $$(".log[sse-swap]")) log.scrollTop = log.scrollHeight; };
theme(false);
logsToEnd();
