// What a model's page can ask for beside a chat: one text, one answer. Answers are written with textContent; nothing of them
// is ever read as HTML.
const busy = new WeakMap(); // form → AbortController

function element(name, text = "", className = "") {
  const el = document.createElement(name);
  el.textContent = text;
  if (className) el.className = className;
  return el;
}

// bars lists things with a share from 0 to 1 each.
function bars(title, list, shown) {
  const ul = document.createElement("ul");
  for (const [what, share] of list) {
    const li = document.createElement("li");
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    svg.setAttribute("class", "bar thin");
    svg.setAttribute("aria-hidden", "true");
    rect.setAttribute("class", "of");
    rect.setAttribute("width", `${Math.max(0, Math.min(1, share)) * 100}%`);
    rect.setAttribute("height", "100%");
    svg.append(rect);
    const name = element("span", what);
    name.title = what;
    li.append(name, svg, element("span", shown(share), "num"));
    ul.append(li);
  }
  return title ? [element("h3", title, "muted"), ul] : [ul];
}

const percent = (p) => `${(p * 100).toFixed(p >= .1 ? 0 : 1)} %`;

// Each API: what is sent for a text, and what is shown of the answer.
const kinds = {
  "completions": {
    path: "completions",
    body: (text) => ({ prompt: text, max_tokens: 64 }),
    show: (got, text) => { const p = element("p", "", "msg"); p.append(element("span", text, "muted"), got.choices[0].text); return [p]; },
  },
  "fill-mask": {
    path: "fill-mask",
    body: (text) => ({ input: text, top_k: 5 }),
    show: (got) => got.data[0].masks.flatMap((guesses, i, all) => bars(all.length > 1 ? `Gap ${i + 1}` : "", guesses.map((g) => [g.token_str || "(space)", g.score]), percent)),
  },
  "classify": {
    path: "classify",
    body: (text) => ({ input: text }),
    show: (got) => bars("", Object.entries(got.data[0].scores).sort((a, b) => b[1] - a[1]).slice(0, 10), percent),
  },
  "embeddings": {
    path: "embeddings",
    body: (text) => ({ input: text.split("\n").map((l) => l.trim()).filter(Boolean) }),
    show: (got, text) => {
      const vectors = got.data.map((d) => d.embedding);
      const lines = text.split("\n").map((l) => l.trim()).filter(Boolean);
      const first = element("p", `${vectors[0].length} numbers: `);
      first.append(element("code", `${vectors[0].slice(0, 6).map((x) => x.toFixed(3)).join(", ")}, …`));
      if (vectors.length === 1) return [first];
      const cosine = (a, b) => a.reduce((s, x, i) => s + x * b[i], 0) / (Math.hypot(...a) * Math.hypot(...b) || 1);
      return [first, ...bars(`How alike “${lines[0]}” is to`, vectors.slice(1).map((v, i) => [lines[i + 1], cosine(vectors[0], v)]), (c) => c.toFixed(3))];
    },
  },
};

async function reason(res) {
  try {
    const body = await res.json();
    return body.error?.message || body.detail || body.title || res.statusText;
  } catch { return res.statusText || `status ${res.status}`; }
}

async function ask(form) {
  const kind = kinds[form.dataset.try];
  const input = form.querySelector("textarea");
  const told = form.querySelector("[data-told]"), note = form.querySelector("[data-note]");
  const text = input.value.trim() || input.placeholder;
  if (busy.has(form)) return;
  input.value = text;
  const stop = new AbortController();
  busy.set(form, stop);
  form.setAttribute("aria-busy", "true");
  note.textContent = "Waiting for the model…";
  const began = performance.now();
  try {
    const res = await fetch(`/v1/${kind.path}`, {
      method: "POST", credentials: "same-origin", signal: stop.signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: form.dataset.model, ...kind.body(text) }),
    });
    if (!res.ok) throw new Error(await reason(res));
    const got = await res.json();
    told.replaceChildren(...kind.show(got, text));
    note.textContent = `Answered in ${Math.round(performance.now() - began)} ms`;
  } catch (err) {
    note.textContent = "";
    if (err.name !== "AbortError") told.replaceChildren(element("p", err instanceof TypeError ? "The server cannot be reached." : err.message, "bad"));
  } finally {
    busy.delete(form);
    form.removeAttribute("aria-busy");
  }
}

document.addEventListener("submit", (e) => { if (e.target.matches("[data-try]")) { e.preventDefault(); e.stopPropagation(); ask(e.target); } }, true);
document.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey) && e.target.matches("[data-try] textarea")) { e.preventDefault(); ask(e.target.closest("form")); }
});
// Leaving the page ends what is still being waited for.
document.addEventListener("htmx:beforeCleanupElement", (e) => { busy.get(e.target)?.abort(); });
