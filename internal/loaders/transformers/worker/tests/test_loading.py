"""What a load costs beyond the model."""

import os
import subprocess
import sys
import tempfile
import unittest
from types import SimpleNamespace
from unittest import mock

from llmm_worker.control import Failure

# In a process of its own, since other tests import what they like. Only what the worker promises to need is there.
CHOOSE = """
import sys
for name in ("accelerate", "onnxruntime", "sentencepiece", "bitsandbytes", "numba"):
    sys.modules[name] = None
from transformers import LlamaConfig
from llmm_worker.loading import choose_class
chosen = choose_class(LlamaConfig(architectures=["LlamaForCausalLM"]), {})
print(chosen[0].__name__, chosen[1], len({m.split(".")[2] for m in sys.modules if m.startswith("transformers.models.")}))
import tempfile
from transformers import AutoModelForCausalLM
from llmm_worker.loading import has, load_weights
config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, vocab_size=8)
with tempfile.TemporaryDirectory() as d:
    AutoModelForCausalLM.from_config(config).save_pretrained(d)
    model = load_weights(AutoModelForCausalLM, d, config, {"format": "safetensors", "params": {"device_map": "auto"}}, "cpu", None)
    print(has("accelerate"), type(model).__name__, model.get_input_embeddings().weight.device)
"""


class ChooseTest(unittest.TestCase):
    def test_only_the_models_own_package_is_imported(self):
        """Some ways to ask transformers whether it knows a config import all that it has, which takes a second or two."""
        out = subprocess.run([sys.executable, "-c", CHOOSE], stdout=subprocess.PIPE, check=True).stdout.decode().split()
        self.assertEqual(out[:2], ["AutoModelForCausalLM", "generate"])
        self.assertLess(int(out[2]), 20)
        # And it loads without what is not promised to be there.
        self.assertEqual(out[3:], ["False", "LlamaForCausalLM", "cpu"])


class TokenizerTest(unittest.TestCase):
    def load(self, files):
        from transformers import LlamaConfig

        from llmm_worker import loading
        with tempfile.TemporaryDirectory() as d:
            for name, content in files.items():
                with open(os.path.join(d, name), "w", encoding="utf-8") as f:
                    f.write(content)
            return loading.load_tokenizer(d, {}, LlamaConfig())

    def test_a_damaged_tokenizer_is_told_from_an_absent_one(self):
        from tokenizers import Tokenizer, models
        good, config = Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str(), '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        self.assertEqual(self.load({"tokenizer.json": good, "tokenizer_config.json": config})("a")["input_ids"], [0])
        for bad in ("{}", "[]", "no", good[:-2], good.replace("WordLevel", "Wondrous")):
            for beside in ({}, {"tokenizer_config.json": config}):
                with self.assertRaises(Failure, msg=bad) as caught:
                    self.load({"tokenizer.json": bad, **beside})
                self.assertEqual(caught.exception.kind, "corrupt_file", bad)
                self.assertIn("tokenizer.json", caught.exception.message)
        for absent in ({}, {"tokenizer_config.json": config}):
            with self.assertRaises(Failure) as caught:
                self.load(absent)
            self.assertEqual(caught.exception.kind, "missing_file")
            self.assertIn("tokenizer", caught.exception.message)
        # What is wrong is another file.
        with self.assertRaises(Failure) as caught:
            self.load({"tokenizer.json": good, "tokenizer_config.json": "no"})
        self.assertEqual(caught.exception.kind, "corrupt_file")
        self.assertIn("tokenizer_config.json", caught.exception.message)


class Weights:
    """A class of models that notes how it is loaded."""

    def from_pretrained(self, path, **options):
        if getattr(self, "error", None) is not None:
            raise self.error
        self.options, self.moved = options, None
        return self

    def to(self, device):
        self.moved = device
        return self


class WeightsTest(unittest.TestCase):
    """On GPUs that are not there."""

    def load(self, accelerate, gpus, params=None, quantization=None):
        from llmm_worker import loading
        cls, settings = Weights(), {"params": params or {}, "offload_folder": "/offload"}
        with mock.patch.object(loading, "has", lambda name: accelerate), mock.patch("torch.cuda.device_count", lambda: gpus):
            loading.load_weights(cls, "/model", SimpleNamespace(), settings, "cuda", quantization)
        return cls.options.get("device_map"), cls.options.get("max_memory"), cls.moved

    def test_one_gpu_needs_no_accelerate(self):
        self.assertEqual(self.load(False, 1), (None, None, "cuda:0"))
        self.assertEqual(self.load(False, 1, {"device_map": "balanced", "max_memory": {"0": "1GiB"}}), (None, None, "cuda:0"))

    def test_with_accelerate_it_places_the_weights(self):
        self.assertEqual(self.load(True, 1), ({"": 0}, None, None))
        self.assertEqual(self.load(True, 2), ("auto", None, None))
        self.assertEqual(self.load(True, 2, {"device_map": "balanced", "max_memory": {"0": "1GiB"}}), ("balanced", {0: "1GiB"}, None))

    def test_what_needs_accelerate_says_so(self):
        for gpus, quantization in ((2, None), (1, object())):
            with self.assertRaises(Failure) as caught:
                self.load(False, gpus, quantization=quantization)
            self.assertEqual(caught.exception.kind, "engine_missing")
            self.assertIn("accelerate", caught.exception.message)

    def test_what_an_error_of_loading_means(self):
        from llmm_worker.loading import explain
        for error, kind, says in (
            (RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes. Error code 12"),
             "out_of_memory", "this machine"),
            (MemoryError(), "out_of_memory", "this machine"),
            (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory", "the GPU"),
            (ValueError("Due to a serious vulnerability issue in `torch.load`, even with `weights_only=True`, we now require users to upgrade torch to at "
                        "least v2.6 in order to use the function."), "engine_missing", "2.6"),
            (RuntimeError("Weights only load failed. Unsupported global"), "corrupt_file", "more than tensors"),
            (ValueError("Using a `device_map`, `tp_plan` requires `accelerate`. You can install it with `pip install accelerate`"), "engine_missing", "accelerate"),
        ):
            f = explain(error, {}, "The weights cannot be loaded")
            self.assertEqual(f.kind, kind, error)
            self.assertIn(says, f.message)


class ReportTest(unittest.TestCase):
    def test_the_dtype_is_that_of_most_weights(self):
        import torch
        from llmm_worker.loading import dtype_name
        tensors = [torch.zeros(4, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.uint8), torch.zeros(5, dtype=torch.float32)]
        model = SimpleNamespace(parameters=lambda: iter(tensors))
        self.assertEqual(dtype_name(model), "uint8")
        # As bitsandbytes keeps 16 of 4 bits.
        tensors[1].quant_state = SimpleNamespace(quant_type="nf4", shape=(4, 4))
        self.assertEqual(dtype_name(model), "nf4")
        self.assertEqual(dtype_name(SimpleNamespace(parameters=lambda: iter(()))), "")


if __name__ == "__main__":
    unittest.main()
