"""What is told before torch is imported, and what is left to transformers."""

import gc
import json
import os
import subprocess
import sys
import tempfile
import unittest

from llmm_worker import control
from llmm_worker.control import Failure
from llmm_worker.early import check


def tensors(size=8, claimed=None, header=None):
    """A file of safetensors with size bytes of data, and a header that speaks of others if told so."""
    if header is None:
        header = json.dumps({"__metadata__": {"format": "pt"}, "a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size if claimed is None else claimed]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


class EarlyTest(unittest.TestCase):
    def check(self, files, **settings):
        """The kind of the failure and its message; "" and "" if there is none."""
        with tempfile.TemporaryDirectory() as d:
            for name, content in files.items():
                with open(os.path.join(d, name), "wb") as f:
                    f.write(content)
            try:
                check({"path": d, "format": "safetensors", "device": "cpu", **settings})
            except Failure as f:
                self.assertTrue(f.hint)
                return f.kind, f.message
            return "", ""

    def test_what_is_well_is_let_through(self):
        whole = {"config.json": b"{}", "model.safetensors": tensors()}
        index = json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors", "c": "x.safetensors"}}).encode()
        for name, files in {
            "one file": whole,
            "nothing in it": {**whole, "model.safetensors": tensors(0, header=b"{}")},
            "an index beside one file, of others": {**whole, "model.safetensors.index.json": index},
            "shards": {"config.json": b"{}", "model.safetensors.index.json": index, "x.safetensors": tensors(), "y.safetensors": tensors()},
            "a name of its own": {"config.json": b"{}", "weights.safetensors": b""},
            "an adapter": {"config.json": b"{}", "adapter_config.json": b"{}"},
            "weights that the config names": {"config.json": b'{"transformers_weights": "w"}'},
            "an index that says nothing": {"config.json": b"{}", "model.safetensors.index.json": b"{}"},
            "a header that its library will refuse": {**whole, "model.safetensors": tensors(header=b"[1, 2]")},
            "a header without end": {**whole, "model.safetensors": tensors(header=b"[" * 100000)},
        }.items():
            self.assertEqual(self.check(files), ("", ""), name)
        for settings in ({"trust_remote_code": True}, {"params": {"variant": "fp16"}}, {"format": "transformers_pt"}):
            self.assertEqual(self.check({"config.json": b"{}"}, **settings), ("", ""))
        self.assertEqual(self.check(whole, quantization_bits=8, device="cuda"), ("", ""))

    def test_what_cannot_be_loaded_is_told(self):
        index = json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}).encode()
        for files, kind, says in (
            ({}, "missing_file", "config.json"),
            ({"config.json": b"<html>"}, "corrupt_file", "config.json"),
            ({"config.json": b"{}"}, "missing_file", "model.safetensors"),
            ({"config.json": b"{}", "model.safetensors.index.json": index, "x.safetensors": tensors()}, "missing_file", "y.safetensors"),
            ({"config.json": b"{}", "model.safetensors.index.json": index, "x.safetensors": tensors(), "y.safetensors": tensors(8, 9)}, "corrupt_file", "y.safetensors"),
            ({"config.json": b"{}", "model.safetensors.index.json": b"no"}, "corrupt_file", "model.safetensors.index.json"),
            ({"config.json": b"{}", "model.safetensors": b""}, "corrupt_file", "model.safetensors"),
            ({"config.json": b"{}", "model.safetensors": tensors()[:20]}, "corrupt_file", "model.safetensors"),
        ):
            got = self.check(files)
            self.assertEqual(got[0], kind, got)
            self.assertIn(says, got[1])
        got = self.check({"config.json": b"{}", "model.safetensors": tensors()}, quantization_bits=8)
        self.assertEqual(got[0], "bad_parameter")
        self.assertIn("CUDA", got[1])

    def test_half_a_tokenizer_is_told(self):
        good = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}}}).encode()
        whole = {"config.json": b"{}", "model.safetensors": tensors()}
        for settings in ({}, {"format": "transformers_pt"}):
            for fine in (good, b"\n " + good + b"\n" * 9, good + b" " * 999, b"{}"):
                self.assertEqual(self.check({**whole, "tokenizer.json": fine}, **settings), ("", ""))
            for bad in (b"", b"<html>{}</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", good[:len(good) // 2]):
                got = self.check({**whole, "tokenizer.json": bad}, **settings)
                self.assertEqual(got[0], "corrupt_file", bad)
                self.assertIn("tokenizer.json", got[1])
                # Where it may not be the one that is read.
                self.assertEqual(self.check({**whole, "tokenizer.json": bad, "tokenizer.model": b""}, **settings), ("", ""))
                self.assertEqual(self.check({**whole, "tokenizer.json": bad}, trust_remote_code=True, **settings), ("", ""))
        for here, own, kind in ((b"{", good, ""), (good, good[:20], "corrupt_file")):
            with tempfile.TemporaryDirectory() as d:
                with open(os.path.join(d, "tokenizer.json"), "wb") as f:
                    f.write(own)
                self.assertEqual(self.check({**whole, "tokenizer.json": here}, tokenizer_path=d)[0], kind)

    def test_a_file_cut_anywhere_is_found(self):
        whole = tensors(40)
        for n in range(len(whole)):
            self.assertEqual(self.check({"config.json": b"{}", "model.safetensors": whole[:n]})[0], "corrupt_file", n)

    def test_it_needs_no_torch(self):
        code = "import sys; sys.modules.update(torch=None, transformers=None, numpy=None); import llmm_worker.early"
        subprocess.run([sys.executable, "-c", code], check=True)


class GarbageTest(unittest.TestCase):
    def test_what_is_imported_is_not_looked_at_again(self):
        self.addCleanup(gc.unfreeze)
        self.addCleanup(gc.enable)
        gc.disable()
        control.imported()
        self.assertTrue(gc.isenabled())
        self.assertGreater(gc.get_freeze_count(), 1000)


if __name__ == "__main__":
    unittest.main()
