"""The OpenAI dialect: from a request's JSON to rows, and from pieces of text to the answer's JSON.

What is not understood is refused by name rather than passed over, with the dialect's own error object.
"""

import functools
import inspect
import json
import math
import time
import uuid
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted  # what json.dumps does to a string, without its preparations
from typing import Any, Dict, List, Optional

from .rows import Sampling

MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_STOPS = 16


class Refused(Exception):
    """An answer that is an error. param names the field, code is the dialect's."""

    def __init__(self, message, param=None, status=400, code=None, kind="invalid_request_error"):
        super().__init__(message)
        self.message, self.param, self.status, self.code, self.kind = message, param, status, code, kind

    def body(self):
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass
class Generation:
    """A checked request for text."""

    prompts: List[List[int]]
    sampling: Sampling
    max_tokens: Optional[int]  # None: as many as fit
    stops: List[str]
    n: int
    stream: bool
    include_usage: bool
    chat: bool
    echo: bool = False
    skip_special: bool = True
    ignore_eos: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))


# Fields that change nothing here and that clients send all the same.
IGNORED = {"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls", "prompt_cache_retention"}

SHARED = {"temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "seed",
          "stop", "n", "stream", "stream_options", "logprobs", "max_tokens", "skip_special_tokens", "ignore_eos"}
CHAT = SHARED | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "response_format", "chat_template_kwargs",
                 "add_generation_prompt", "continue_final_message", "reasoning_effort"}
COMPLETION = SHARED | {"prompt", "echo", "best_of", "suffix"}

# What tells transformers how a chat is rendered, in any version. chat_template would be a program of the client's own, run
# where every request waits for it.
RENDERING = {"self", "conversation", "conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
             "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict",
             "return_assistant_tokens_mask", "tokenizer_kwargs", "args", "kwargs"}


class Reader:
    """Takes fields out of a JSON object and says by name what is wrong with them."""

    def __init__(self, body, known):
        if not isinstance(body, dict):
            raise Refused("The request must be a JSON object")
        for name in body:
            if name not in known and name not in IGNORED:
                raise Refused(f"{name!r} is not a parameter that this model's engine understands", name)
        self._body = body

    def has(self, name):
        return self._body.get(name) is not None

    def raw(self, name, default=None):
        value = self._body.get(name)
        return default if value is None else value

    def flag(self, name, default=False):
        value = self.raw(name, default)
        if not isinstance(value, bool):
            raise Refused(f"{name} must be true or false", name)
        return value

    def number(self, name, default, low, high):
        value = self.raw(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
            raise Refused(f"{name} must be a number from {low} to {high}", name)
        return float(value)

    def integer(self, name, default, low, high):
        value = self.raw(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused(f"{name} must be a whole number from {low} to {high}", name)
        return value

    def strings(self, name):
        value = self.raw(name, [])
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(s, str) for s in value) or len(value) > MAX_STOPS:
            raise Refused(f"{name} must be a string or a list of at most {MAX_STOPS} strings", name)
        return value


def sampling(r, defaults, vocabulary, logprobs):
    """defaults is the folder's generation_config.json: what the model's makers recommend, where the request says nothing."""
    bias = {}
    for key, value in (r.raw("logit_bias", {}) or {}).items() if isinstance(r.raw("logit_bias", {}), dict) else [("", None)]:
        if not str(key).isdigit() or int(key) >= vocabulary or isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            raise Refused("logit_bias must map token ids of the model to numbers from -100 to 100", "logit_bias")
        bias[int(key)] = float(value)

    def default(name, otherwise):
        value = defaults.get(name)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise

    return Sampling(
        temperature=r.number("temperature", default("temperature", 1.0), 0, 100),
        top_p=r.number("top_p", default("top_p", 1.0), 0, 1),
        top_k=max(r.integer("top_k", int(default("top_k", 0)), -1, 1_000_000), 0),
        min_p=r.number("min_p", default("min_p", 0.0), 0, 1),
        presence_penalty=r.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=r.number("frequency_penalty", 0.0, -2, 2),
        repetition_penalty=r.number("repetition_penalty", default("repetition_penalty", 1.0), 0.01, 100),
        logit_bias=bias, seed=r.integer("seed", None, -(2**63), 2**63 - 1), logprobs=logprobs)


def _stream(r):
    stream = r.flag("stream")
    options = r.raw("stream_options", {})
    if not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool):
        raise Refused("stream_options must be an object", "stream_options")
    if options and not stream:
        raise Refused("stream_options goes with stream: true only", "stream_options")
    return stream, options.get("include_usage", False)


def chat(body, loaded):
    """A Generation of /v1/chat/completions."""
    r = Reader(body, CHAT)
    for name, fine in (("response_format", ({"type": "text"},)), ("tool_choice", ("auto", "none"))):
        if r.has(name) and r.raw(name) not in fine:
            raise Refused(f"{name} {json.dumps(r.raw(name))[:200]} is not supported by the transformers engine", name, code="unsupported")
    messages = [_message(i, m) for i, m in enumerate(_messages(r))]
    tokenizer = loaded.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise Refused("The model has no chat template, so it cannot chat; use /v1/completions", "messages", code="no_chat_template")
    extra = r.raw("chat_template_kwargs", {})
    tools = r.raw("tools")
    if not isinstance(extra, dict):
        raise Refused("chat_template_kwargs must be an object", "chat_template_kwargs")
    for name in extra:
        if name in rendering(type(tokenizer)):
            raise Refused(f"chat_template_kwargs must not have {name}: it is for what the model's own chat template reads, such as enable_thinking, "
                          "and not for how it is rendered", f"chat_template_kwargs.{name}")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise Refused("tools must be a list of objects", "tools")
    if r.has("reasoning_effort"):
        extra = {"reasoning_effort": r.raw("reasoning_effort"), **extra}
    resume = r.flag("continue_final_message")
    try:
        text = tokenizer.apply_chat_template(messages, tools=None if r.raw("tool_choice") == "none" else tools, tokenize=False,
                                             add_generation_prompt=r.flag("add_generation_prompt", not resume), continue_final_message=resume, **extra)
    except Exception as e:  # templates raise what they like: roles that must alternate, a system message that may not be
        raise Refused(f"The model's chat template refuses these messages: {str(e)[:400]}", "messages")
    told = None
    if r.flag("logprobs"):
        told = r.integer("top_logprobs", 0, 0, MAX_LOGPROBS)
    elif r.has("top_logprobs"):
        raise Refused("top_logprobs goes with logprobs: true only", "top_logprobs")
    limit = r.integer("max_completion_tokens", r.integer("max_tokens", None, 1, 2**31), 1, 2**31)
    stream, usage = _stream(r)
    return Generation(
        prompts=[tokenizer(text, add_special_tokens=False)["input_ids"]], sampling=sampling(r, loaded.defaults, len(tokenizer), told), max_tokens=limit,
        stops=r.strings("stop"), n=r.integer("n", 1, 1, MAX_CHOICES), stream=stream, include_usage=usage, chat=True,
        skip_special=r.flag("skip_special_tokens", True), ignore_eos=r.flag("ignore_eos"), id="chatcmpl-" + uuid.uuid4().hex)


@functools.lru_cache(maxsize=None)
def rendering(tokenizer):
    """The names that mean something to apply_chat_template of a class of tokenizers itself, and not to the template. A method of a
    model's own may hand the rest on, so those it stands for count as well."""
    names = set(RENDERING)
    for base in tokenizer.__mro__:
        if "apply_chat_template" in base.__dict__:
            names.update(inspect.signature(base.__dict__["apply_chat_template"]).parameters)
    return frozenset(names)


def _messages(r):
    messages = r.raw("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("messages must be a list with at least one message", "messages")
    return messages


def _message(i, m):
    where = f"messages[{i}]"
    if not isinstance(m, dict) or not isinstance(m.get("role"), str):
        raise Refused(f"{where} must be an object with a role", "messages")
    content = m.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise Refused(f"{where} has a part of type {kind!r}; only text is understood", "messages", code="unsupported")
            parts.append(part["text"])
        content = "".join(parts)
    elif content is None:
        content = ""
    elif not isinstance(content, str):
        raise Refused(f"{where}.content must be a string or a list of parts", "messages")
    return {**m, "content": content}


def completion(body, loaded):
    """A Generation of /v1/completions."""
    r = Reader(body, COMPLETION)
    if r.has("suffix") and r.raw("suffix") != "":
        raise Refused("suffix is not supported by the transformers engine", "suffix", code="unsupported")
    n = r.integer("n", 1, 1, MAX_CHOICES)
    if r.has("best_of") and r.raw("best_of") != n:
        raise Refused("best_of is not supported by the transformers engine", "best_of", code="unsupported")
    stream, usage = _stream(r)
    return Generation(
        prompts=token_lists(r.raw("prompt"), "prompt", loaded.tokenizer),
        sampling=sampling(r, loaded.defaults, len(loaded.tokenizer), r.integer("logprobs", None, 0, MAX_LOGPROBS)),
        max_tokens=r.integer("max_tokens", 16, 1, 2**31), stops=r.strings("stop"), n=n, stream=stream, include_usage=usage, chat=False,
        echo=r.flag("echo"), skip_special=r.flag("skip_special_tokens", True), ignore_eos=r.flag("ignore_eos"), id="cmpl-" + uuid.uuid4().hex)


def token_lists(value, name, tokenizer, special=True):
    """A text, a list of texts, a list of tokens or a list of such lists, as lists of tokens."""
    def is_tokens(v):
        return isinstance(v, list) and bool(v) and all(isinstance(t, int) and not isinstance(t, bool) for t in v)

    if isinstance(value, str) or is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value or len(value) > 2048:
        raise Refused(f"{name} must be a string, a list of strings, or a list of tokens", name)
    out = []
    for item in value:
        if isinstance(item, str):
            ids = tokenizer(item, add_special_tokens=special)["input_ids"]
        elif is_tokens(item):
            ids = item
            if min(ids) < 0 or max(ids) >= len(tokenizer):
                raise Refused(f"{name} has a token that the model does not know", name)
        else:
            raise Refused(f"{name} must be a string, a list of strings, or a list of tokens", name)
        if not ids:
            raise Refused(f"{name} must not be empty", name)
        out.append(ids)
    return out


class Answer:
    """Builds the answer of a Generation, whole or as a stream of events."""

    def __init__(self, request, model, tokenizer):
        self._r, self._model, self._tokenizer = request, model, tokenizer
        object_name = "text_completion"
        if request.chat:
            object_name = "chat.completion.chunk" if request.stream else "chat.completion"
        self._head = {"id": request.id, "object": object_name, "created": request.created, "model": model}
        # An event differs from the one before in its text only, so the rest is made once.
        start = json.dumps(self._head, ensure_ascii=False)[:-1]
        self._before = [f'{start}, "choices": [{{"index": {i}, ' for i in range(len(request.prompts) * request.n)]

    def prompt(self, index):
        """The text of a prompt, for an answer that repeats it."""
        return self._tokenizer.decode(self._r.prompts[index], skip_special_tokens=True)

    def first(self, index):
        """The event that opens a choice."""
        if not self._r.chat:
            return None
        return self._before[index] + '"delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}]}'

    def event(self, index, piece):
        """The event of a piece."""
        text = quoted(piece.text)
        told = "null"
        if self._r.sampling.logprobs is not None:
            told = json.dumps(self.logprobs(piece.tokens, piece.logprobs), ensure_ascii=False)
        end = "null" if piece.finish is None else f'"{piece.finish}"'
        if not self._r.chat:
            return f'{self._before[index]}"text": {text}, "logprobs": {told}, "finish_reason": {end}}}]}}'
        delta = f'{{"content": {text}}}' if piece.text else "{}"
        return f'{self._before[index]}"delta": {delta}, "logprobs": {told}, "finish_reason": {end}}}]}}'

    def usage_event(self, usage):
        return json.dumps({**self._head, "choices": [], "usage": usage})

    def whole(self, choices, usage):
        """choices: (text, tokens, logprobs, finish) of each, in order."""
        listed = []
        for i, (text, tokens, told, finish) in enumerate(choices):
            logprobs = self.logprobs(tokens, told) if self._r.sampling.logprobs is not None else None
            if self._r.chat:
                listed.append({"index": i, "message": {"role": "assistant", "content": text}, "logprobs": logprobs, "finish_reason": finish})
            else:
                listed.append({"index": i, "text": text, "logprobs": logprobs, "finish_reason": finish})
        return {**self._head, "choices": listed, "usage": usage}

    def logprobs(self, tokens, told):
        shown = [self._tokenizer.decode([t]) for t in tokens]
        if self._r.chat:
            return {"content": [
                {"token": s, "logprob": t.chosen, "bytes": list(s.encode()),
                 "top_logprobs": [{"token": x, "logprob": p, "bytes": list(x.encode())} for x, p in ((self._tokenizer.decode([i]), p) for i, p in t.top)]}
                for s, t in zip(shown, told)]}
        return {"tokens": shown, "token_logprobs": [t.chosen for t in told],
                "top_logprobs": [{self._tokenizer.decode([i]): p for i, p in t.top} for t in told]}


def usage(prompt, generated) -> Dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
