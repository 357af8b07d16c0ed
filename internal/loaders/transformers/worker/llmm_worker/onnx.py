"""Models in ONNX, run by onnxruntime: embeddings, fill-mask, classification. torch is not imported.

A folder as sentence-transformers and Optimum lay it out: config.json and the tokenizer's files at the top, the graph there or
in onnx/. What lies beside the graph is taken before what lies at the top.
"""

import logging
import os
import re
import sys
import time
import types
from dataclasses import dataclass, field
from typing import Any, Dict

import numpy as np
import onnxruntime

from . import tokens
from .control import Failure, imported
from .encode import normalized, padded
from .folder import context_length, first_line, pooling, read_json
from .jobs import Jobs
from .troubles import out_of_memory

log = logging.getLogger("llmm.onnx")

# Inputs that follow from a text. A graph that wants others is not for texts, or generates.
KNOWN = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}

# A batch of more tokens gives the memory back that it needed; below that it is kept for the next one.
SMALL = 128

TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


@dataclass
class Loaded:
    """A model that is ready to be used by the one thread that owns it; see encode for what it is asked."""

    session: Any
    tokenizer: Any
    config: Any
    kind: str  # embed, fill_mask, classify
    output: str  # the one that is used
    context_length: int  # tokens
    pooling: str = ""  # mean, cls, last, max; "" where the graph pools
    normalize: bool = False
    name: str = ""  # the model_id, as answers give it
    seconds: Dict[str, float] = field(default_factory=dict)

    # Fewer than torch takes. More at once is not quicker on a CPU, and takes memory: 8 texts of 512 tokens half a gigabyte
    # with all-MiniLM-L6-v2, and twice that with its weights in 8 bits.
    rows_at_once = 32

    @property
    def tokens_at_once(self):
        return 1024 if self.on_cpu else 16384

    @property
    def on_cpu(self):
        return self.session.get_providers()[0] == "CPUExecutionProvider"

    @property
    def apis(self):
        """What requests are answered; the names are those of the manager."""
        return [{"embed": "embeddings", "fill_mask": "fill-mask", "classify": "classify"}[self.kind]]

    @property
    def pad_id(self):
        return self.tokenizer.pad_id

    def engine(self, params):
        """The thread that is the only one to use the model from now on."""
        return Jobs()

    def embed(self, lists):
        out, mask = self._run(lists)
        vectors = pool(out, mask, self.pooling) if out.ndim == 3 else out
        return normalized(vectors) if self.normalize else vectors

    def logits_at(self, lists, places):
        rows, columns = zip(*places)
        return self._run(lists)[0][list(rows), list(columns)]

    def logits(self, lists):
        return self._run(lists)[0]

    def _run(self, lists):
        """The output for lists of tokens, as float32, and their mask."""
        ids, mask = padded(lists, self.pad_id)
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids),
                 "position_ids": np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)}
        feed = {i.name: known[i.name].astype(TYPES[i.type], copy=False) for i in self.session.get_inputs()}
        options = None
        if self.on_cpu and ids.size > SMALL:
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return self.session.run([self.output], feed, options)[0].astype(np.float32, copy=False), mask

    def report(self):
        """What the manager shows of the instance."""
        provider = self.session.get_providers()[0]
        return {
            "model_class": type(self.session).__name__,
            "tokenizer_class": type(self.tokenizer.inner).__name__,
            "kind": self.kind,
            "apis": self.apis,
            "mask": self.tokenizer.mask_token or "",
            "device": "cuda:0" if provider == "CUDAExecutionProvider" else "cpu",
            "provider": provider,
            "context_length": self.context_length,
            "pooling": self.pooling,
            "chat_template": False,
            "onnxruntime": onnxruntime.__version__,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
        }

    def memory(self):
        return {}


def load(settings, control):
    """Loads what settings name. Raises Failure; everything else is a crash with a traceback."""
    seconds = {}

    def timed(name, work):
        began = time.monotonic()
        got = work()
        seconds[name] = time.monotonic() - began
        return got

    root, graph = settings["path"], os.path.join(settings["path"], settings["file"])
    places = [os.path.dirname(graph), root]
    provider = choose_provider(settings)
    control.stage("engine", "Reading the config")
    folder = first_with(places, ["config.json"])
    if folder is None:
        raise Failure("missing_file", f"There is no config.json beside {settings['file']} or above it", "Copy config.json from where the model came from.")
    raw = read_json(os.path.join(folder, "config.json"))
    config = types.SimpleNamespace(**{k: v for k, v in raw.items() if isinstance(k, str)})
    control.stage("engine", "Loading the tokenizer")
    tokenizer = timed("tokenizer", lambda: load_tokenizer(settings, places))
    imported()
    control.stage("weights", f"Loading {os.path.basename(graph)}")
    session = timed("weights", lambda: open_session(graph, settings, provider))
    kind, output = purpose(session, config, tokenizer, settings)
    loaded = Loaded(session=session, tokenizer=tokenizer, config=config, kind=kind, output=output.name,
                    context_length=context_length(config, tokenizer, settings), seconds=seconds)
    if kind == "embed":
        how, loaded.normalize = pooling(first_with(places, ["modules.json", "1_Pooling"]) or root, settings)
        loaded.pooling = how if rank(output) != 2 else ""
    return loaded


def first_with(places, names):
    return next((p for p in places if any(os.path.exists(os.path.join(p, n)) for n in names)), None)


def load_tokenizer(settings, places):
    own = settings.get("tokenizer_path")
    if own:
        return tokens.load(own, settings)
    return tokens.load(first_with(places, tokens.FILES) or places[-1], settings)


def choose_provider(settings):
    if not (settings.get("device") or "cpu").startswith("cuda"):
        return "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise no_cuda(f"onnxruntime {onnxruntime.__version__} of this environment is built without CUDA")
    # What torch has brought of CUDA and cuDNN is found there; newer versions only.
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    return "CUDAExecutionProvider"


def no_cuda(why):
    return Failure("engine_missing", f"cuda was asked for, and {why}",
                   f"Put onnxruntime-gpu in its place (`uv pip uninstall --python {sys.executable} onnxruntime`, then `uv pip install --python {sys.executable} onnxruntime-gpu`), or set device_preference to cpu.")


def open_session(graph, settings, provider):
    if not os.path.isfile(graph):
        raise Failure("missing_file", f"There is no {settings['file']} in {settings['path']}", "Correct filename in custom_loader_params, or copy the file there.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings.get("params", {}).get("threads") or os.environ.get("OMP_NUM_THREADS") or 0)
    options.log_severity_level = 3  # errors: warnings are many and mean nothing to anybody here
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=[provider] if provider.startswith("CPU") else [provider, "CPUExecutionProvider"])
    except Exception as e:
        raise explain(e, os.path.basename(graph))
    if session.get_providers()[0] != provider:
        raise no_cuda("onnxruntime could not start it: CUDA or cuDNN of the version that it was built for is missing; the log says which")
    return session


def rank(value):
    return len(value.shape or [])


def purpose(session, config, tokenizer, settings):
    """What the graph is for, and the output that is used."""
    architectures = getattr(config, "architectures", None)
    architectures = [a for a in architectures if isinstance(a, str)] if isinstance(architectures, list) else []
    inputs, outputs = {i.name: i for i in session.get_inputs()}, {o.name: o for o in session.get_outputs()}
    generates = any(a.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in architectures)
    strange = sorted(set(inputs) - KNOWN)
    if settings.get("params", {}).get("task") == "generate" or any(n.startswith(("past_key_values", "use_cache_branch")) for n in strange) or \
            generates and "logits" in outputs:
        raise Failure("unsupported_architecture", f"The ONNX model generates text ({', '.join(architectures) or 'it keeps keys and values'}), and ONNX models that do are not run",
                      "Use the model's safetensors with Transformers, or a GGUF of it with llama.cpp.")
    if strange or "input_ids" not in inputs:
        raise Failure("unsupported_architecture", f"The ONNX model asks for the inputs {some(inputs)}; of texts there are {', '.join(sorted(KNOWN))}",
                      "Choose another .onnx file by filename in custom_loader_params, or export the model anew for its task.")
    odd = sorted(i.name for i in inputs.values() if i.type not in TYPES)
    if odd:
        raise Failure("unsupported_architecture", f"The ONNX model wants {some(odd)} in another type than whole numbers", "Export the model anew.")
    logits, pooled = outputs.get("logits"), outputs.get("sentence_embedding")
    vectors = next((outputs[n] for n in ("last_hidden_state", "token_embeddings", "hidden_states") if n in outputs), None)
    if settings.get("params", {}).get("task") == "embed":
        logits = None
    if logits is not None and any(a.endswith("ForTokenClassification") for a in architectures):
        raise Failure("unsupported_architecture", "The model labels single tokens, which no request here asks for", "Use a model for sequence classification.")
    if logits is not None and (rank(logits) == 2 or any(a.endswith("ForSequenceClassification") for a in architectures)):
        return "classify", logits
    if logits is not None and tokenizer.mask_token_id is not None:
        return "fill_mask", logits
    if pooled is not None and not settings.get("params", {}).get("pooling"):
        return "embed", pooled
    only = next(iter(outputs.values())) if len(outputs) == 1 and logits is None else None
    chosen = vectors or pooled or (only if only is not None and rank(only) in (2, 3) else None)
    if chosen is None:
        raise Failure("unsupported_architecture", f"The ONNX model gives {some(outputs)}; what is needed is last_hidden_state, sentence_embedding or logits",
                      "Choose another .onnx file by filename in custom_loader_params, or export the model anew for its task.")
    return "embed", chosen


def some(names):
    listed = sorted(names)
    return ", ".join(n[:60] for n in listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def pool(hidden, mask, how):
    """One vector a row. hidden: [rows, tokens, size], mask: [rows, tokens] with 1 where there is a token (padding right)."""
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        return hidden[np.arange(len(hidden)), mask.sum(axis=1) - 1]
    wide = mask[:, :, None].astype(np.float32)
    if how == "max":
        return np.where(wide > 0, hidden, -np.inf).max(axis=1).astype(np.float32)
    return (hidden * wide).sum(axis=1) / np.maximum(wide.sum(axis=1), 1)


def explain(e, name):
    """The Failure that an exception of onnxruntime means."""
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(e))
    low, kind = str(e).lower(), type(e).__name__
    if out_of_memory(e):
        return Failure("out_of_memory", f"There was no memory for {name}: {line}", "Unload another model, or choose a smaller or quantised .onnx file.")
    if kind in ("InvalidProtobuf", "InvalidArgument") and ("protobuf" in low or "no graph" in low):
        return Failure("corrupt_file", f"{name} is damaged, half copied, or no ONNX file: {line}", "Copy or download the file again.")
    if "external data" in low or "external initializer" in low or "getextdatafromtensorproto" in low:
        if "does not exist" in low or "no such file" in low:
            return Failure("missing_file", f"{name} keeps its weights in another file, which is not there: {line}", "Copy that file to the same folder; it is named like the graph, with _data at the end.")
        return Failure("corrupt_file", f"The external data of {name} cannot be used: {line}", "Copy or download it again, from the same place and revision as the graph.")
    if "unsupported model ir version" in low or "opset" in low or "is not a registered function/op" in low or kind == "NotImplemented":
        found = re.search(r"Opset \d+ is[^.]*|Unsupported model IR version.*|[\w.:]+\(-?\d+\) is not a registered function/op|Could not find an implementation for \S+", str(e))
        return Failure("unsupported_architecture", f"onnxruntime {onnxruntime.__version__} cannot run {name}: {found.group(0)[:300] if found else line}",
                       "Upgrade the engine (`llmm engine install transformers`), or export the model for an older opset.")
    if kind == "InvalidGraph" or "type error" in low or "shape inference" in low:
        return Failure("corrupt_file", f"The graph in {name} is not valid: {line}", "Copy or download the file again, or export it anew.")
    return Failure("crash", f"{name} cannot be loaded: {kind}: {line}", "The log has the whole traceback.")
