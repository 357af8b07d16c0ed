"""What a request asks of the model's thread, and what comes back. Nothing here needs torch."""

import threading
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional

from .text import Detokenizer, Stops


class OutOfMemory(Exception):
    """The device had no room for what a request needs beside the weights."""


@dataclass
class Sampling:
    """Settings of one row; the names are those of the OpenAI dialect and of transformers."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Dict[int, float] = field(default_factory=dict)
    seed: Optional[int] = None
    logprobs: Optional[int] = None  # how many alternatives to tell; None tells nothing


@dataclass
class TokenLogprobs:
    """The logarithm of the chosen token's probability, and of the likeliest ones."""

    chosen: float
    top: List


@dataclass
class Piece:
    """What one step adds to a row's text; nothing, and no tokens, while a character or a stop string is incomplete. finish is
    set on the last: "stop" or "length"."""

    text: str
    tokens: List[int]
    logprobs: List[Any]
    finish: Optional[str] = None
    error: Optional[BaseException] = None


@dataclass(eq=False)
class Row:
    """One text to generate. sink is called once a step, from the model's thread, and must not block."""

    prompt_ids: List[int]
    sampling: Sampling
    max_tokens: int
    stops: List[str]
    sink: Callable[[Piece], None]
    skip_special: bool = True
    ignore_eos: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: bool = False
    generated: int = 0

    def start(self, tokenizer, device):
        from .sampling import RowSampler  # with torch, which not every model needs
        self.done, self.generated = False, 0
        self._sampler = RowSampler(self.sampling, device)
        self._text = Detokenizer(tokenizer, self.skip_special)
        self._stops = Stops(self.stops)
        self._held_tokens, self._held_logprobs = [], []

    @property
    def sampler(self):
        return self._sampler

    def take(self, token, logprobs, eos):
        """Takes the next token and tells the sink."""
        self.generated += 1
        self._held_tokens.append(token)
        self._held_logprobs.append(logprobs)
        finish = None
        if token in eos and not self.ignore_eos:
            finish = "stop"
            text = self._stops.add(self._text.end())
        else:
            text = self._stops.add(self._text.add(token))
            if self._stops.found is None and self.generated >= self.max_tokens:
                finish = "length"
                text += self._stops.add(self._text.end())
        if self._stops.found is not None:
            finish = "stop"
        elif finish is not None:
            text += self._stops.end()
        self.done = finish is not None
        if not text and not self.done:
            self.sink(Piece("", [], []))
            return
        tokens, self._held_tokens = self._held_tokens, []
        told, self._held_logprobs = self._held_logprobs, []
        self.sink(Piece(text, tokens, told, finish))

    def fail(self, error):
        if self.done:
            return
        self.done = True
        self.sink(Piece("", [], [], None, error))
