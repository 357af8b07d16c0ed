"""The thread that owns the model.

Requests put rows into a queue: one row for each choice that is to be generated. The thread takes rows that wait, runs
them as one batch through the model's own generate(), and tells each row's sink what came out, token by token. Rows of
one batch differ in length, sampling and end; see sampling. What comes while a batch runs waits for the next one. Work
that is not generation (embeddings, classification) goes through the same queue, so that the model never sees two threads.
"""

import collections
import logging
import threading
from dataclasses import dataclass, field
from typing import Any, Callable, List, Optional

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from .sampling import RowSampler, Sampling
from .text import Detokenizer, Stops

log = logging.getLogger("llmm.generate")

# Architectures whose state runs through padding: their rows are never put into one batch.
RECURRENT = ("mamba", "rwkv", "recurrent", "jamba", "zamba", "bamba", "lfm2", "xlstm", "nemotron_h", "granitemoehybrid",
             "falcon_h1", "qwen3_next", "qwen3_5", "kimi_linear", "plamo", "minimax")


class OutOfMemory(Exception):
    """The device had no room for what a request needs beside the weights."""


@dataclass
class Piece:
    """What one step adds to a row's text. finish is set on the last: "stop" or "length"."""

    text: str
    tokens: List[int]
    logprobs: List[Any]
    finish: Optional[str] = None
    error: Optional[BaseException] = None


@dataclass(eq=False)
class Row:
    """One text to generate. sink is called from the model's thread and must not block."""

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
        if text or self.done:
            tokens, self._held_tokens = self._held_tokens, []
            told, self._held_logprobs = self._held_logprobs, []
            self.sink(Piece(text, tokens, told, finish))

    def fail(self, error):
        self.done = True
        self.sink(Piece("", [], [], None, error))


class _Chooser(LogitsProcessor):
    """Chooses each row's token, tells it, and leaves generate() nothing else to choose."""

    def __init__(self, rows, prompts, eos):
        self._rows, self._prompts, self._eos = rows, prompts, eos

    def __call__(self, input_ids, scores):
        greedy = None
        if any(not r.done and r.sampler.plain() for r in self._rows):
            greedy = scores.argmax(dim=-1).tolist()
        for i, row in enumerate(self._rows):
            if row.done:
                continue
            if row.sampler.plain():
                token, told = greedy[i], None
            else:
                token, told = row.sampler.choose(scores[i], self._prompts[i])
                scores[i, token] = float("inf")
            row.take(token, told, self._eos)
        return scores


class _Stopper(StoppingCriteria):
    def __init__(self, rows):
        self._rows = rows

    def __call__(self, input_ids, scores, **kwargs):
        done = [r.done or r.cancelled.is_set() for r in self._rows]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class Engine:
    """Runs rows and jobs one batch at a time."""

    def __init__(self, loaded, max_batch, max_batch_tokens):
        self._loaded = loaded
        self._max_batch = 1 if loaded.recurrent else max_batch
        self._max_batch_tokens = max_batch_tokens
        self._waiting = collections.deque()
        self._wake = threading.Condition()
        self._closed = False
        self._running = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, rows):
        """Queues rows. Each is answered by its sink, whatever happens."""
        with self._wake:
            self._waiting.extend(rows)
            self._wake.notify()

    def call(self, job):
        """Queues a function without arguments that uses the model; it must catch what it raises."""
        self.submit([job])

    def load(self):
        """How many rows and jobs run and wait."""
        with self._wake:
            return self._running, len(self._waiting)

    def close(self):
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _work(self):
        while True:
            with self._wake:
                self._running = 0
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                batch = self._next()
                self._running = len(batch)
            if batch and not isinstance(batch[0], Row):
                batch[0]()
            elif batch:
                self._run(batch)

    def _next(self):
        """Takes what runs next: a job, or the rows at the head of the queue that fit into one batch."""
        rows, longest = [], 0
        while self._waiting and len(rows) < self._max_batch:
            head = self._waiting[0]
            if not isinstance(head, Row):
                return rows or [self._waiting.popleft()]
            if head.cancelled.is_set():
                self._waiting.popleft()
                continue
            size = max(longest, len(head.prompt_ids) + head.max_tokens)
            if rows and size * (len(rows) + 1) > self._max_batch_tokens:
                break
            longest = size
            rows.append(self._waiting.popleft())
        return rows

    def _run(self, rows):
        try:
            for row in rows:
                row.start(self._loaded.tokenizer, self._loaded.input_device)
            self._generate(rows)
        except torch.OutOfMemoryError as e:
            self._forget()
            untold = [r for r in rows if not r.done and r.generated == 0]
            for row in rows:
                if not row.done and row.generated > 0:
                    row.fail(OutOfMemory(str(e)))
            if len(rows) > 1 and untold:
                log.warning("no memory for %d requests at once; they run one after the other", len(rows))
                for row in untold:
                    self._run([row])
            else:
                for row in untold:
                    row.fail(OutOfMemory(str(e)))
        except BaseException as e:  # the row's client is told, and the next batch runs
            log.exception("generation failed")
            for row in rows:
                if not row.done:
                    row.fail(e)

    def _forget(self):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _generate(self, rows):
        loaded = self._loaded
        longest = max(len(r.prompt_ids) for r in rows)
        pad = loaded.pad_id
        if loaded.encoder_decoder:  # the encoder reads from the left
            ids = [r.prompt_ids + [pad] * (longest - len(r.prompt_ids)) for r in rows]
            mask = [[1] * len(r.prompt_ids) + [0] * (longest - len(r.prompt_ids)) for r in rows]
        else:
            ids = [[pad] * (longest - len(r.prompt_ids)) + r.prompt_ids for r in rows]
            mask = [[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in rows]
        device = loaded.input_device
        prompts = [torch.tensor(r.prompt_ids, device=device) for r in rows]
        config = GenerationConfig(
            max_new_tokens=max(r.max_tokens for r in rows), do_sample=False, num_beams=1, use_cache=True, pad_token_id=pad,
            eos_token_id=None, decoder_start_token_id=loaded.decoder_start_id)
        with torch.inference_mode():
            loaded.model.generate(
                input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device), generation_config=config,
                logits_processor=LogitsProcessorList([_Chooser(rows, prompts, loaded.eos_ids)]),
                stopping_criteria=StoppingCriteriaList([_Stopper(rows)]))
        for row in rows:  # what generate() ended on its own account, such as a full cache
            if not row.done and not row.cancelled.is_set():
                row.fail(RuntimeError("the model stopped before the text was complete"))
