// The small chat on a model's page: POST /v1/chat/completions with stream:true and the session's cookie. Answers are
// written with textContent; nothing of them is ever read as HTML.
const busy = new WeakMap(); // form → AbortController
const talks = new WeakMap(); // form → messages

function add(form, role, text) {
  const el = document.createElement("div");
  el.className = `msg ${role}`;
  el.textContent = text;
  const list = form.querySelector(".msgs");
  list.append(el);
  list.scrollTop = list.scrollHeight;
  return el;
}

function waiting(form, on) {
  form.querySelector("[data-send]").hidden = on;
  form.querySelector("[data-stop]").hidden = !on;
  form.setAttribute("aria-busy", on);
}

async function reason(res) {
  try {
    const body = await res.json();
    return body.error?.message || body.detail || body.message || body.title || res.statusText;
  } catch { return res.statusText || `status ${res.status}`; }
}

// deltas yields the pieces of text of an OpenAI stream, and how many tokens they were when the engine says it.
async function* deltas(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message || "The model stopped with an error.");
      yield { piece: part.choices?.[0]?.delta?.content || "", tokens: part.usage?.completion_tokens };
    }
  }
}

async function ask(form) {
  const input = form.querySelector("textarea");
  const text = input.value.trim();
  if (!text || busy.has(form)) return;
  const talk = talks.get(form) || [];
  talks.set(form, talk);
  talk.push({ role: "user", content: text });
  input.value = "";
  add(form, "user", text);
  const out = add(form, "assistant", "");
  const list = form.querySelector(".msgs");
  const note = form.querySelector("[data-note]");
  const stop = new AbortController();
  busy.set(form, stop);
  waiting(form, true);
  const began = performance.now();
  let answer = "", pieces = 0, counted = 0, first = 0, last = 0; // a piece may hold several tokens: engines say in the end how many it was
  try {
    const res = await fetch("/v1/chat/completions", {
      method: "POST", credentials: "same-origin", signal: stop.signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: form.dataset.chat, stream: true, messages: talk, stream_options: { include_usage: true } }),
    });
    if (!res.ok) throw new Error(await reason(res));
    for await (const { piece, tokens } of deltas(res.body)) {
      counted = tokens || counted;
      if (!piece) continue;
      last = performance.now();
      first ||= last;
      pieces++;
      answer += piece;
      const end = list.scrollHeight - list.scrollTop - list.clientHeight < 24;
      out.textContent = answer;
      if (end) list.scrollTop = list.scrollHeight;
    }
    const rate = (counted || pieces) / Math.max((last - first) / 1000, .001);
    note.textContent = pieces ? `First word after ${((first - began) / 1000).toFixed(1)} s` : "The model answered with nothing.";
    if (last > first) note.textContent += `, then ${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`;
  } catch (err) {
    if (err.name === "AbortError") { note.textContent = "Stopped."; } else {
      note.textContent = "";
      add(form, "error", err instanceof TypeError ? "The server cannot be reached." : err.message);
    }
  } finally {
    if (answer) talk.push({ role: "assistant", content: answer }); else { talk.pop(); out.remove(); }
    busy.delete(form);
    waiting(form, false);
    input.focus({ preventScroll: true });
  }
}

document.addEventListener("submit", (e) => { if (e.target.matches("[data-chat]")) { e.preventDefault(); e.stopPropagation(); ask(e.target); } }, true);
document.addEventListener("click", (e) => {
  const form = e.target.closest("[data-chat]");
  if (!form) return;
  if (e.target.closest("[data-stop]")) busy.get(form)?.abort();
  if (e.target.closest("[data-clear]")) { busy.get(form)?.abort(); talks.delete(form); form.querySelector(".msgs").replaceChildren(); form.querySelector("[data-note]").textContent = ""; }
});
document.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing && e.target.matches("[data-chat] textarea")) { e.preventDefault(); ask(e.target.closest("form")); }
});
// Leaving the page ends what is still being written.
document.addEventListener("htmx:beforeCleanupElement", (e) => { busy.get(e.target)?.abort(); });
