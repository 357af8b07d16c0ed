"""The thread that owns the model.

Requests put rows into a queue: one row for each choice that is to be generated. The thread takes rows that wait, runs
them as one batch through the model's own generate(), and tells each row's sink what came out, token by token. Rows of
one batch differ in length, sampling and end; see sampling. What comes while a batch runs waits for the next one. Work
that is not generation (embeddings, classification) goes through the same queue, so that the model never sees two threads.
"""

import logging

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from . import troubles
from .jobs import Jobs
from .rows import OutOfMemory, Row

log = logging.getLogger("llmm.generate")

# Architectures whose state runs through padding: their rows are never put into one batch.
RECURRENT = ("mamba", "rwkv", "recurrent", "jamba", "zamba", "bamba", "lfm2", "xlstm", "nemotron_h", "granitemoehybrid",
             "falcon_h1", "qwen3_next", "qwen3_5", "kimi_linear", "plamo", "minimax")


class _Chooser(LogitsProcessor):
    """Chooses each row's token, tells it, and leaves generate() nothing else to choose."""

    def __init__(self, rows, prompts, eos, step):
        self._rows, self._prompts, self._eos, self._step = rows, prompts, eos, step

    def __call__(self, input_ids, scores):
        self._step()
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


class Engine(Jobs):
    """Runs rows as well as jobs, one batch at a time."""

    def __init__(self, loaded, max_batch, max_batch_tokens):
        self._loaded = loaded
        self._max_batch = 1 if loaded.recurrent else max_batch
        self._max_batch_tokens = max_batch_tokens
        super().__init__()

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

    def _run(self, batch):
        if not batch:
            return
        if not isinstance(batch[0], Row):
            super()._run(batch)
            return
        rows, full = batch, None
        try:
            for row in rows:
                row.start(self._loaded.tokenizer, self._loaded.input_device)
            self._generate(rows)
        except BaseException as e:  # the rows' clients are told, and the next batch runs
            if not troubles.out_of_memory(e):
                log.exception("generation failed")
                for row in rows:
                    row.fail(e)
                if self._broken(e):
                    raise
                return
            full = OutOfMemory(str(e))
        if full is None:
            return
        # Only here, where the exception and the frames of its traceback are gone, is what the batch held given back.
        self._forget()
        untold = [r for r in rows if not r.done and r.generated == 0]
        for row in rows:
            if row.generated > 0:
                row.fail(full)
        if len(rows) > 1 and untold:
            log.warning("no memory for %d requests at once; they run one after the other", len(rows))
            for row in untold:
                self._run([row])
        else:
            for row in untold:
                row.fail(full)

    def _broken(self, e):
        if troubles.fatal(e):
            return True
        if troubles.out_of_memory(e) or not torch.cuda.is_initialized():
            return False
        try:
            torch.cuda.synchronize()
        except Exception:  # what CUDA has once failed with, it fails with for ever
            return True
        return False

    def _forget(self):
        super()._forget()
        if torch.cuda.is_initialized():
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
                logits_processor=LogitsProcessorList([_Chooser(rows, prompts, loaded.eos_ids, self.step)]),
                stopping_criteria=StoppingCriteriaList([_Stopper(rows)]))
        for row in rows:  # what generate() ended on its own account, such as a full cache
            if not row.done and not row.cancelled.is_set():
                row.fail(RuntimeError("the model stopped before the text was complete"))
