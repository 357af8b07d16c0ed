"""What can be known of a load that must fail before torch is imported, which takes seconds.

Only what transformers would refuse too, whatever its version: doubtful cases are left to it.
"""

import json
import os

from .control import Failure
from .folder import read_json

# Files that a tokenizer may be read from in place of tokenizer.json.
VOCABULARIES = ("tokenizer.model", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def check(settings):
    """Raises Failure if the model cannot be loaded."""
    path = settings["path"]
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise Failure("missing_file", f"There is no config.json in {path}", "Copy config.json from where the model came from.")
    config = read_json(os.path.join(path, "config.json"))
    bits = int(settings.get("quantization_bits") or 0)
    if bits and not (settings.get("device") or "cpu").startswith("cuda"):
        raise Failure("bad_parameter", f"quantization_bits {bits} needs a CUDA device: bitsandbytes is what does it, and it does not do so on the CPU here",
                      "Leave quantization_bits out, or use a GGUF of the model with llama.cpp, which runs quantised on the CPU.")
    if not settings.get("trust_remote_code"):
        check_tokenizer(settings.get("tokenizer_path") or path)
    # A class of the model's own, an adapter, or a config that names its weights may want other files.
    if settings.get("format") == "safetensors" and not settings.get("trust_remote_code") and not settings.get("params", {}).get("variant") \
            and "transformers_weights" not in config and not os.path.exists(os.path.join(path, "adapter_config.json")):
        check_safetensors(path)


def check_tokenizer(path):
    """Where a tokenizer is read from tokenizer.json alone, it is not half of one, nor a page that says that it was not found. To parse
    it would take as long as to load it."""
    file = os.path.join(path, "tokenizer.json")
    if not os.path.isfile(file) or any(os.path.isfile(os.path.join(path, name)) for name in VOCABULARIES):
        return
    with open(file, "rb") as f:
        start = f.read(64).lstrip()
        f.seek(max(os.fstat(f.fileno()).st_size - 64, 0))
        end = f.read(64).rstrip()
    if start[:1] not in (b"{", b"") or end[-1:] not in (b"}", b"") or os.path.getsize(file) == 0:
        raise Failure("corrupt_file", "tokenizer.json is not one: it is half copied, or something else under its name", "Copy or download the file again.")


def check_safetensors(path):
    if os.path.isfile(os.path.join(path, SINGLE)):
        return check_size(path, SINGLE)
    if not os.path.isfile(os.path.join(path, INDEX)):
        if not any(name.endswith(".safetensors") for name in os.listdir(path)):
            raise Failure("missing_file", f"There is no {SINGLE} in {path}, nor any other file of safetensors", "Put the missing file beside the others, or correct model_format.")
        return None
    shards = read_json(os.path.join(path, INDEX)).get("weight_map")
    names = sorted({name for name in shards.values() if isinstance(name, str)}) if isinstance(shards, dict) else []
    for name in names:
        if not os.path.isfile(os.path.join(path, name)):
            raise Failure("missing_file", f"{INDEX} names {name}, and there is no such file in {path}", "Copy or download the missing file.")
    for name in names:
        check_size(path, name)
    return None


def check_size(path, name):
    """A file of safetensors begins with the length of its header, which says where each tensor begins and ends; nothing else follows."""
    with open(os.path.join(path, name), "rb") as f:
        size = os.fstat(f.fileno()).st_size
        length = int.from_bytes(f.read(8), "little")
        if size >= 8 and length <= min(size - 8, 100_000_000):  # the format's own limit
            header = f.read(length)
            try:
                wanted = 8 + length + max((t["data_offsets"][1] for key, t in json.loads(header).items() if key != "__metadata__"), default=0)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
                return  # its own library says what is wrong
        else:
            wanted = 8 + length
    if size < wanted:
        raise Failure("corrupt_file", f"{name} is half copied: it has {size} bytes, and its header speaks of {wanted}. It is a file of safetensors",
                      "Copy or download the files again.")
