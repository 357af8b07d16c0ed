"""What is read of a folder beside its weights."""

import json
import os
import tempfile
import unittest

from llmm_worker.folder import in_words, named_type, weight_bytes

KNOWN = ("bert", "roberta", "xlm-roberta", "opt", "t5", "gpt2", "distilbert")


class NamedTypeTest(unittest.TestCase):
    def test_a_model_is_what_its_name_says(self):
        for source, kind in (
            ("prajjwal1/bert-tiny", "bert"),
            ("org/TinyBERT_4L", "bert"),
            ("/opt/models/biobert/", "bert"),
            ("org/xlm-roberta-base", "xlm-roberta"),  # the longest
            ("org/adopted-by-me", ""),  # opt, by chance
            ("bert/other", ""),  # somebody's account
            ("", ""),
        ):
            self.assertEqual(named_type(source, KNOWN), kind, source)


class WeightBytesTest(unittest.TestCase):
    def test_those_that_are_read_count(self):
        def index(*names):
            return json.dumps({"weight_map": {str(i): n for i, n in enumerate(names)}}).encode()

        pt = {"format": "transformers_pt"}
        for files, settings, want in (
            ({"model.safetensors": 70, "pytorch_model.bin": 50, "consolidated.safetensors": 70}, {}, 70),
            ({"model.safetensors": 70, "pytorch_model.bin": 50}, pt, 50),
            ({"model.safetensors": 70, "model.fp16.safetensors": 35}, {"params": {"variant": "fp16"}}, 0),
            ({"a.safetensors": 3, "b.safetensors": 4, "c.safetensors": 5, "model.safetensors.index.json": index("a.safetensors", "b.safetensors", "a.safetensors")}, {}, 7),
            ({"a.bin": 3, "pytorch_model.bin.index.json": index("a.bin")}, pt, 3),
            ({"a.safetensors": 3, "model.safetensors.index.json": index("a.safetensors", "absent.safetensors")}, {}, 0),
            ({"a.safetensors": 3, "model.safetensors.index.json": b"{}"}, {}, 0),
            ({"a.safetensors": 3}, {}, 0),
        ):
            with tempfile.TemporaryDirectory() as d:
                for name, content in files.items():
                    with open(os.path.join(d, name), "wb") as f:
                        f.write(content if isinstance(content, bytes) else bytes(content))
                self.assertEqual(weight_bytes(d, {"format": "safetensors", **settings}), want, files)

    def test_bytes_for_people(self):
        self.assertEqual([in_words(n) for n in (430_944, 269_060_552, 2**30, 16_060_522_904)], ["0.4 MiB", "256.6 MiB", "1.0 GiB", "15.0 GiB"])


if __name__ == "__main__":
    unittest.main()
