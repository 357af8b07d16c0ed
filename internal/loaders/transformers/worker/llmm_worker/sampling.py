"""Sampling for a batch whose rows each have settings of their own.

transformers samples a whole batch with one set of settings. Here each row's next token is chosen by us, and the scores
that go back to generate() leave only that token, so that its greedy search takes it. A row with a seed gives the same
text whatever else is in the batch (up to the arithmetic of the batch's shape, which no server can promise).
"""

import torch

from .rows import TokenLogprobs


class RowSampler:
    """Chooses the next token of one row."""

    def __init__(self, settings, device):
        self.s = settings
        self._counts = {}
        self._generator = None
        if settings.temperature > 0:
            self._generator = torch.Generator(device=device)
            if settings.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(settings.seed & 0x7FFFFFFFFFFFFFFF)

    def plain(self):
        """Whether the likeliest token is all that is wanted: nothing needs to be computed then."""
        s = self.s
        return (s.temperature == 0 and s.logprobs is None and not s.logit_bias and s.presence_penalty == 0
                and s.frequency_penalty == 0 and s.repetition_penalty == 1)

    def choose(self, scores, prompt_ids):
        """Returns the id of the next token and its TokenLogprobs (None unless asked for). scores: float32 [vocab]."""
        s = self.s
        if s.repetition_penalty != 1:
            seen = torch.unique(torch.cat([prompt_ids, torch.tensor(list(self._counts), dtype=prompt_ids.dtype, device=prompt_ids.device)]))
            old = scores[seen]
            scores[seen] = torch.where(old < 0, old * s.repetition_penalty, old / s.repetition_penalty)
        if self._counts and (s.presence_penalty or s.frequency_penalty):
            ids = torch.tensor(list(self._counts), device=scores.device)
            n = torch.tensor(list(self._counts.values()), dtype=scores.dtype, device=scores.device)
            scores[ids] -= s.presence_penalty + s.frequency_penalty * n
        for token, bias in s.logit_bias.items():
            scores[token] += bias
        told = None
        if s.logprobs is not None:
            told = torch.log_softmax(scores, dim=-1)
        token = int(scores.argmax()) if s.temperature == 0 else self._sample(scores)
        self._counts[token] = self._counts.get(token, 0) + 1
        if told is None:
            return token, None
        top = []
        if s.logprobs > 0:
            values, ids = told.topk(min(s.logprobs, told.numel()))
            top = list(zip(ids.tolist(), values.tolist()))
        return token, TokenLogprobs(float(told[token]), top)

    def _sample(self, scores):
        s = self.s
        scores = scores / s.temperature
        if s.top_k > 0:
            kept = scores.topk(min(s.top_k, scores.numel())).values[-1]
            scores = scores.masked_fill(scores < kept, float("-inf"))
        probs = torch.softmax(scores, dim=-1)
        if s.min_p > 0:
            probs = probs.masked_fill(probs < probs.max() * s.min_p, 0)
        if s.top_p < 1:
            ordered, order = probs.sort(descending=True)
            # The token that crosses the limit stays: at least one always does.
            beyond = ordered.cumsum(-1) - ordered > s.top_p * ordered.sum()
            probs = probs.scatter(0, order, ordered.masked_fill(beyond, 0))
        return int(torch.multinomial(probs, 1, generator=self._generator))
