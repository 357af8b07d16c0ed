"""One row's sampling against what each setting means, by hand."""

import math
import unittest

import torch

from llmm_worker.rows import Sampling
from llmm_worker.sampling import RowSampler

NONE = torch.tensor([], dtype=torch.long)


def chosen(n, scores, **settings):
    sampler = RowSampler(Sampling(**settings), "cpu")
    return [sampler.choose(torch.tensor(scores), NONE)[0] for _ in range(n)]


class TestSampling(unittest.TestCase):
    def test_distribution_is_softmax(self):
        scores = [math.log(6), math.log(3), math.log(1)]
        got = chosen(6000, scores, seed=1)
        for token, p in enumerate((0.6, 0.3, 0.1)):
            # Five standard deviations.
            self.assertAlmostEqual(got.count(token) / 6000, p, delta=5 * math.sqrt(p * (1 - p) / 6000))

    def test_temperature_squares(self):
        got = chosen(6000, [math.log(2), 0.0], temperature=0.5, seed=1)
        self.assertAlmostEqual(got.count(0) / 6000, 0.8, delta=0.03)

    def test_zero_temperature_is_greedy(self):
        self.assertEqual(chosen(20, [1.0, 1.1, 0.9], temperature=0, logprobs=0), [1] * 20)

    def test_cuts(self):
        scores = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
        self.assertEqual(set(chosen(500, scores, top_k=2, seed=1)), {0, 1})
        self.assertEqual(set(chosen(500, scores, top_p=0.79, seed=1)), {0, 1})
        self.assertEqual(set(chosen(500, scores, top_p=0.0, seed=1)), {0})
        self.assertEqual(set(chosen(500, scores, min_p=0.25, seed=1)), {0, 1, 2})

    def test_seed(self):
        scores = [0.0] * 50
        self.assertEqual(chosen(30, scores, seed=5), chosen(30, scores, seed=5))
        self.assertNotEqual(chosen(30, scores, seed=5), chosen(30, scores, seed=6))
        self.assertNotEqual(chosen(30, scores), chosen(30, scores))

    def test_penalties(self):
        # Each token that was chosen falls by 1.5 at each choice: the three take turns.
        self.assertEqual(chosen(6, [1.0, 0.9, 0.8], temperature=0, frequency_penalty=1.5), [0, 1, 2, 0, 1, 2])
        self.assertEqual(chosen(3, [1.0, 0.5], temperature=0, presence_penalty=0.6), [0, 1, 0])
        self.assertEqual(chosen(2, [1.0, 0.9], temperature=0, repetition_penalty=2.0)[1], 1)

    def test_repetition_penalty_counts_the_prompt(self):
        sampler = RowSampler(Sampling(temperature=0, repetition_penalty=2.0), "cpu")
        self.assertEqual(sampler.choose(torch.tensor([1.0, 0.9]), torch.tensor([0, 0]))[0], 1)

    def test_bias(self):
        self.assertEqual(chosen(1, [1.0, 0.0], temperature=0, logit_bias={1: 2.0}), [1])
        self.assertEqual(set(chosen(200, [1.0, 0.0], seed=1, logit_bias={0: -100.0})), {1})

    def test_logprobs(self):
        sampler = RowSampler(Sampling(temperature=0, logprobs=2), "cpu")
        token, told = sampler.choose(torch.tensor([math.log(0.7), math.log(0.2), math.log(0.1)]), NONE)
        self.assertEqual((token, [t for t, _ in told.top]), (0, [0, 1]))
        self.assertAlmostEqual(math.exp(told.chosen), 0.7, places=5)


if __name__ == "__main__":
    unittest.main()
