"""Embeddings, gaps and labels of a model whose numbers are known, and what a folder says of pooling."""

import base64
import json
import math
import os
import struct
import tempfile
import types
import unittest

import numpy as np

from llmm_worker import encode, folder, onnx
from llmm_worker.control import Failure
from llmm_worker.dialect import Refused


class Letters:
    """A tokenizer of one token a letter; _ is the mask."""

    mask_token, mask_token_id = "_", 95

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(c) for c in text]}

    def __len__(self):
        return 128

    def decode(self, ids):
        return "".join(chr(i) for i in ids)


class Model:
    """Embeds a text as its length and its first letter, and likes the letter that follows the one before the gap."""

    tokenizer, name, context_length, rows_at_once, tokens_at_once = Letters(), "m", 20, 2, 12

    def __init__(self, **config):
        self.config = types.SimpleNamespace(**config)
        self.groups = []

    def embed(self, lists):
        self.groups.append([len(ids) for ids in lists])
        return np.array([[len(ids), ids[0], 0] for ids in lists], dtype=np.float32)

    def logits(self, lists):
        return np.array([[0.0, math.log(len(ids)), 0.0] for ids in lists], dtype=np.float32)

    def logits_at(self, lists, places):
        out = np.zeros((len(places), 128), dtype=np.float32)
        for i, (row, at) in enumerate(places):
            out[i, lists[row][at - 1] + 1] = 5
        return out


class TestEncode(unittest.TestCase):
    def test_texts_keep_their_order(self):
        model = Model()
        got = encode.embeddings({"input": ["aa", "b" * 9, "ccc", "d", "eee"]}, model)()
        self.assertEqual([d["embedding"] for d in got["data"]], [[2, 97, 0], [9, 98, 0], [3, 99, 0], [1, 100, 0], [3, 101, 0]])
        self.assertEqual(got["usage"]["total_tokens"], 18)
        for group in model.groups:
            self.assertTrue(len(group) == 1 or len(group) <= 2 and max(group) * len(group) <= 12, model.groups)

    def test_forms(self):
        got = encode.embeddings({"input": "abc", "encoding_format": "base64"}, Model())()
        self.assertEqual(struct.unpack("<3f", base64.b64decode(got["data"][0]["embedding"])), (3, 97, 0))
        cut = encode.embeddings({"input": "abc", "dimensions": 2}, Model(hidden_size=3))()["data"][0]["embedding"]
        self.assertEqual(len(cut), 2)
        self.assertAlmostEqual(math.hypot(*cut), 1, places=6)

    def test_gaps(self):
        got = encode.fill_mask({"input": ["a_c_", "xy_"], "top_k": 2}, Model())()["data"]
        self.assertEqual([[m[0]["token_str"] for m in d["masks"]] for d in got], [["b", "d"], ["z"]])
        self.assertEqual([len(m) for d in got for m in d["masks"]], [2, 2, 2])
        self.assertAlmostEqual(got[0]["masks"][0][0]["score"], math.exp(5) / (math.exp(5) + 127), places=5)

    def test_labels(self):
        got = encode.classify({"input": "abcd"}, Model(id2label={"0": "no", "1": "yes"}))()["data"][0]
        self.assertEqual(got["label"], "yes")
        self.assertEqual(list(got["scores"]), ["no", "yes", "LABEL_2"])
        self.assertAlmostEqual(got["scores"]["yes"], 4 / 6, places=5)
        several = encode.classify({"input": "abcd"}, Model(problem_type="multi_label_classification"))()["data"][0]
        self.assertAlmostEqual(several["scores"]["LABEL_1"], 0.8, places=5)

    def test_refusals(self):
        for work, body in ((encode.embeddings, {}), (encode.embeddings, {"input": ""}), (encode.embeddings, {"input": "x" * 21}), (encode.embeddings, {"input": "x", "dimensions": 0}),
                           (encode.embeddings, {"input": "x", "encoding_format": "hex"}), (encode.fill_mask, {"input": "no gap"}), (encode.fill_mask, {"input": "_", "top_k": 0}),
                           (encode.classify, {"input": "x", "top_k": 1}), (encode.classify, {"input": [500]})):
            with self.assertRaises(Refused, msg=str(body)):
                work(body, Model())

    def test_pooling_passes_over_padding(self):
        hidden = np.array([[[1, 2], [3, -4], [100, 100]], [[5, 5], [7, 9], [9, 7]]], dtype=np.float32)
        mask = np.array([[1, 1, 0], [1, 1, 1]])
        for how, want in (("mean", [[2, -1], [7, 7]]), ("max", [[3, 2], [9, 9]]), ("cls", [[1, 2], [5, 5]]), ("last", [[3, -4], [9, 7]])):
            self.assertEqual(onnx.pool(hidden, mask, how).tolist(), want, how)


class TestPooling(unittest.TestCase):
    def of(self, modules, said=None, **params):
        with tempfile.TemporaryDirectory() as path:
            if modules is not None:
                with open(os.path.join(path, "modules.json"), "w") as f:
                    json.dump(modules, f)
            if said is not None:
                os.mkdir(os.path.join(path, "1_Pooling"))
                with open(os.path.join(path, "1_Pooling", "config.json"), "w") as f:
                    json.dump(said, f)
            return folder.pooling(path, {"params": params})

    def test_as_the_folder_says(self):
        steps = [{"type": "sentence_transformers.models." + k, "path": p} for k, p in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))]
        self.assertEqual(self.of(None), ("mean", False))
        self.assertEqual(self.of(steps, {"pooling_mode_cls_token": True}), ("cls", True))
        self.assertEqual(self.of(steps[:2], {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}), ("last", False))
        self.assertEqual(self.of(steps, {"pooling_mode_cls_token": True}, pooling="mean", normalize=False), ("mean", False))
        for modules, said, kind in ((steps, None, "missing_file"), (steps, {"pooling_mode_weightedmean_tokens": True}, "unsupported_architecture"),
                                       (steps + [{"type": "sentence_transformers.models.Dense"}], {"pooling_mode_cls_token": True}, "unsupported_architecture"),
                                       (["x"], None, "corrupt_file")):
            with self.assertRaises(Failure) as caught:
                self.of(modules, said)
            self.assertEqual(caught.exception.kind, kind)


if __name__ == "__main__":
    unittest.main()
