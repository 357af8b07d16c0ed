"""Makes the files beside it with the real torch.save: python make.py. What is in them is in want.json."""
import collections, json, os, pickle, sys

import torch
from safetensors.torch import save_file

torch.manual_seed(1)
n = lambda *shape: torch.randn(*shape)
small = n(2, 3)
state = collections.OrderedDict([
    ("model.embed_tokens.weight", n(5, 4).to(torch.bfloat16)),
    ("half", n(3, 2).half()),
    ("full", n(7)),
    ("scalar", torch.tensor(2.5)),
    ("empty", torch.zeros(0, 4)),
    ("transposed", n(4, 6).t()),
    ("permuted", n(2, 3, 4).permute(2, 0, 1)),
    ("every.second", n(10)[1::2]),
    ("a.row", small[1]),
    ("a.column", small[:, 2]),
    ("expanded", n(1, 3).expand(1, 3)),
    ("position_ids", torch.arange(6).expand((1, -1))),
    ("mask", torch.tensor([True, False, True])),
    ("double", n(2).double()),
    ("bytes", torch.arange(5, dtype=torch.uint8)),
    ("parameter", torch.nn.Parameter(n(2, 2))),
])
state["lm_head.weight"] = state["model.embed_tokens.weight"]
state._metadata = collections.OrderedDict([("", {"version": 1})])

torch.save(state, "zip.bin")
torch.save(state, "protocol4.bin", pickle_protocol=4)
torch.save(state, "bare.bin", _use_new_zipfile_serialization=False)
torch.save(dict(state), "dict.bin")
want = {k: v.detach().contiguous() for k, v in state.items() if k != "lm_head.weight"}
save_file(want, "want.safetensors")

torch.save({"model": state, "step": 3}, "training.bin")
torch.save(torch.nn.Linear(2, 2), "module.bin")
torch.save(state, "short.bin")
os.truncate("short.bin", os.path.getsize("short.bin") // 2)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ.get("RAN", "/tmp/the-pickle-was-run"),)


torch.save({"weight": n(2), "evil": Evil()}, "evil.bin")
with open("evil-bare.bin", "wb") as f:
    pickle.dump(Evil(), f, protocol=2)

# Tensors that lie in their storages in odd ways, and types that safetensors readers such as Ollama do not take.
odd = collections.OrderedDict([
    ("none", torch.zeros(3, 0)),
    ("neither", torch.zeros(0, 3, 0)),
    ("row", torch.tensor([1.0, 2.0, 3.0]).expand(4, 3)),
    ("column", torch.tensor([[1.0], [2.0]]).expand(2, 5)),
    ("one", torch.tensor(7.0).expand(2, 3)),
    ("full", torch.arange(64.0)),
])
torch.save(odd, "odd.bin")
torch.save(odd, "odd-bare.bin", _use_new_zipfile_serialization=False)
save_file({k: v.contiguous() for k, v in odd.items()}, "odd.safetensors")
for name, type in {"float8": torch.float8_e4m3fn, "unsigned": torch.uint16, "complex": torch.complex64}.items():
    torch.save({"weight": torch.zeros(4, dtype=type)}, name + ".bin")
