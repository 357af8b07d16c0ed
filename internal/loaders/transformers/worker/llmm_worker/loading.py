"""From a folder to a model that answers: config, tokenizer, weights.

Nothing here reaches a network: the manager has brought the files, and HF_HUB_OFFLINE is set. Code in the folder is run
only with trust_remote_code; pickles are read with weights_only, which refuses everything but tensors.
"""

import collections
import contextlib
import importlib
import importlib.util
import logging
import os
import time
import types
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Set

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from . import encode, generate, troubles
from .control import Failure, imported
from .folder import context_length, first_line, in_words, named_type, pooling, read_json, text_config, weight_bytes

log = logging.getLogger("llmm.loading")

# What a class of the given ending can do, the most telling first.
HEADS = (
    ("ForConditionalGeneration", "generate"),
    ("ForCausalLM", "generate"),
    ("LMHeadModel", "generate"),
    ("ForMaskedLM", "fill_mask"),
    ("ForSequenceClassification", "classify"),
    ("ForTokenClassification", "classify_tokens"),
)

# The settings of from_pretrained that custom_loader_params may hold, beside those with a place of their own below.
PASSED_ON = ("attn_implementation", "device_map", "max_memory", "low_cpu_mem_usage", "variant")


@dataclass
class Loaded:
    """A model that is ready to be used by the one thread that owns it."""

    model: Any
    tokenizer: Any
    config: Any
    kind: str  # generate, embed, fill_mask, classify
    context_length: int  # tokens, prompt and answer together
    pooling: str = ""  # of embeddings: mean, cls, last, max
    normalize: bool = False
    name: str = ""  # the model_id, as answers give it
    seconds: Dict[str, float] = field(default_factory=dict)

    # Texts, and tokens of padding and all, that go through the model at once.
    rows_at_once = 64
    tokens_at_once = 32768

    @property
    def apis(self):
        """What requests are answered; the names are those of the manager."""
        if self.kind == "generate":
            return (["chat"] if getattr(self.tokenizer, "chat_template", None) else []) + ["completions"]
        return {"fill_mask": ["embeddings", "fill-mask"], "classify": ["embeddings", "classify"]}.get(self.kind, ["embeddings"])

    def engine(self, params):
        """The thread that is the only one to use the model from now on."""
        return generate.Engine(self, int(params.get("max_batch_size") or 8), int(params.get("max_batch_tokens") or 65536))

    def embed(self, lists):
        """See encode."""
        ids, mask = self._padded(lists)
        model = self.model if self.kind == "embed" else self.model.base_model
        with torch.inference_mode():
            vectors = pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, self.pooling)
            if self.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return vectors.float().cpu().numpy()

    def logits_at(self, lists, places):
        """See encode."""
        ids, mask = self._padded(lists)
        rows, columns = zip(*places)
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=mask).logits[list(rows), list(columns)].float().cpu().numpy()

    def logits(self, lists):
        """See encode."""
        ids, mask = self._padded(lists)
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()

    def _padded(self, lists):
        ids, mask = encode.padded(lists, self.pad_id)
        return torch.from_numpy(ids).to(self.input_device), torch.from_numpy(mask).to(self.input_device)

    @property
    def input_device(self):
        return self.model.get_input_embeddings().weight.device

    @property
    def encoder_decoder(self):
        return bool(getattr(self.config, "is_encoder_decoder", False))

    @property
    def recurrent(self):
        kind = getattr(self.config, "model_type", "") or ""
        return any(kind.startswith(r) for r in generate.RECURRENT)

    @property
    def defaults(self):
        """The folder's generation_config.json, {} if there is none."""
        return self._defaults

    @property
    def eos_ids(self) -> Set[int]:
        return self._eos

    @property
    def pad_id(self) -> int:
        return self._pad

    @property
    def decoder_start_id(self) -> Optional[int]:
        return self._decoder_start

    def settle(self, path):
        """Reads what ends a text, and takes the generation settings out of the model: requests bring their own."""
        self._defaults = read_json(os.path.join(path, "generation_config.json"))
        ends = [self._defaults.get("eos_token_id"), getattr(text_config(self.config), "eos_token_id", None)]
        if self.tokenizer is not None:
            ends.append(self.tokenizer.eos_token_id)
        self._eos = set()
        for e in ends:
            self._eos.update(e if isinstance(e, (list, tuple)) else [] if e is None else [e])
        pad = None if self.tokenizer is None else self.tokenizer.pad_token_id
        if pad is None:
            pad = getattr(text_config(self.config), "pad_token_id", None)
        if pad is None or pad < 0:
            pad = min(self._eos, default=0)
        self._pad = pad
        start = self._defaults.get("decoder_start_token_id")
        if start is None:
            start = getattr(self.config, "decoder_start_token_id", None)
        self._decoder_start = start if self.encoder_decoder else None
        if hasattr(self.model, "generation_config"):
            self.model.generation_config = transformers.GenerationConfig(
                pad_token_id=self._pad, decoder_start_token_id=self._decoder_start)

    def report(self):
        """What the manager shows of the instance. Bytes are of the weights as they lie in memory."""
        parameters = sum(true_count(p) for p in self.model.parameters())
        out = {
            "model_class": type(self.model).__name__,
            "tokenizer_class": type(self.tokenizer).__name__ if self.tokenizer is not None else "",
            "kind": self.kind,
            "apis": self.apis,
            "mask": getattr(self.tokenizer, "mask_token", None) or "",
            "device": str(self.input_device),
            "devices": sorted({str(p.device) for p in self.model.parameters()}),
            "attention": getattr(self.model.config, "_attn_implementation", None) or "",
            "dtype": dtype_name(self.model),
            "parameters": parameters,
            "weight_bytes": int(self.model.get_memory_footprint()),
            "context_length": self.context_length,
            "pooling": self.pooling,
            "chat_template": bool(getattr(self.tokenizer, "chat_template", None)),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
        }
        return {**out, **self.memory()}

    def memory(self):
        """Bytes that torch holds on the GPUs; {} on the CPU."""
        if not any(p.is_cuda for p in self.model.parameters()):
            return {}
        gpus = range(torch.cuda.device_count())
        return {"cuda_allocated": sum(torch.cuda.memory_allocated(i) for i in gpus), "cuda_reserved": sum(torch.cuda.memory_reserved(i) for i in gpus),
                "cuda_reserved_peak": sum(torch.cuda.max_memory_reserved(i) for i in gpus)}


def true_count(p):
    """The elements of a parameter: bitsandbytes packs two of 4 bits into one byte and keeps the shape beside them."""
    state = getattr(p, "quant_state", None)
    shape = getattr(state, "shape", None)
    return int(torch.Size(shape).numel()) if shape is not None else p.numel()


def dtype_name(model):
    """What most of the weights are: float32, bfloat16, int8. bitsandbytes keeps 4 bits as bytes and says beside them what they are: nf4."""
    held = collections.Counter()
    for p in model.parameters():
        held[getattr(getattr(p, "quant_state", None), "quant_type", None) or str(p.dtype).replace("torch.", "")] += true_count(p)
    return held.most_common(1)[0][0] if held else ""


def load(settings, control):
    """Loads what settings name. Raises Failure; everything else is a crash with a traceback."""
    seconds = {}

    @contextlib.contextmanager
    def timed(name):
        began = time.monotonic()
        yield
        seconds[name] = time.monotonic() - began

    path = settings["path"]
    control.stage("engine", "Reading the config")
    with timed("config"):
        config = load_config(path, settings)
    control.stage("engine", "Loading the tokenizer")
    with timed("tokenizer"):
        tokenizer = load_tokenizer(settings.get("tokenizer_path") or path, settings, config)
    device = choose_device(settings)
    quantization = quantize(settings)
    cls, kind = choose_class(config, settings)
    imported()
    size = weight_bytes(path, settings)
    control.stage("weights", f"Loading {cls.__name__}" + (f", {in_words(size)}" if size else ""))
    with timed("weights"), told_progress(control):
        model = load_weights(cls, path, config, settings, device, quantization)
    model.eval()
    loaded = Loaded(model=model, tokenizer=tokenizer, config=config, kind=kind, context_length=context_length(config, tokenizer, settings),
                    seconds=seconds)
    loaded.settle(path)
    if kind != "generate":
        loaded.pooling, loaded.normalize = pooling(path, settings)
    return loaded


def load_config(path, settings):
    raw = read_json(os.path.join(path, "config.json"))
    trusted = bool(settings.get("trust_remote_code"))
    if raw.get("auto_map") and not trusted and raw.get("model_type") not in known_types():
        raise Failure("unsupported_architecture", "The model brings code of its own, and trust_remote_code is false, so it was not run",
                      "Read the code in the repository; if you trust it, set trust_remote_code: true. It then runs with the rights of this server.")
    if not raw.get("model_type") and not raw.get("auto_map"):
        kind = named_type(settings.get("source") or path, known_types())
        if kind:
            log.info("config.json has no model_type; the model is taken for a %s, by its name", kind)
            return class_of(kind).from_pretrained(path, local_files_only=True)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trusted, local_files_only=True)
    except Exception as e:
        raise explain(e, raw, "The config cannot be used")


def class_of(kind):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    return CONFIG_MAPPING[kind]


def known_types():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    return CONFIG_MAPPING_NAMES


def load_tokenizer(path, settings, config):
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=bool(settings.get("trust_remote_code")), local_files_only=True, config=config)
    except Exception as e:
        if settings.get("kind") == "probe":
            raise
        if "trust_remote_code" in str(e):
            raise explain(e, {}, "The tokenizer cannot be used")
        check_tokenizer(path)
        raise Failure("missing_file", f"No tokenizer could be loaded from {path}: {first_line(e)}",
                      "Copy tokenizer.json (or tokenizer.model, vocab.txt) and tokenizer_config.json beside the weights, or set tokenizer_path to a folder that has them.")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizer(path):
    """Raises Failure if what is wrong with a folder's tokenizer is that a file of it is damaged."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        read_json(os.path.join(path, name))
    file = os.path.join(path, "tokenizer.json")
    if not os.path.isfile(file):
        return
    from tokenizers import Tokenizer
    try:
        Tokenizer.from_file(file)
    except Exception as e:
        raise Failure("corrupt_file", f"tokenizer.json cannot be read: {first_line(e)}", "Copy or download the file again.")


def choose_device(settings):
    device = settings.get("device") or "cpu"
    if not device.startswith("cuda"):
        return "cpu"
    if torch.version.cuda is None:
        raise Failure("engine_missing", f"cuda was asked for, and the torch of this environment ({torch.__version__}) is built without CUDA",
                      "Install a torch with CUDA into it, or set device_preference to cpu.")
    if not torch.cuda.is_available():
        raise Failure("engine_missing", f"cuda was asked for, and torch {torch.__version__} finds no usable GPU",
                      "Look at nvidia-smi: the driver may be older than this torch needs. Or set device_preference to cpu.")
    return device


def quantize(settings):
    """The quantization_config for quantization_bits, None without."""
    bits = int(settings.get("quantization_bits") or 0)
    if bits == 0:
        return None
    try:
        importlib.import_module("bitsandbytes")
    except Exception as e:
        raise Failure("engine_missing", f"quantization_bits {bits} needs bitsandbytes, which cannot be imported: {first_line(e)}",
                      "Install bitsandbytes into the environment of the engine, or leave quantization_bits out.")
    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)


def choose_class(config, settings):
    """The class to load the weights into, and what it can do."""
    task = settings.get("params", {}).get("task")
    names = list(getattr(config, "architectures", None) or [])
    kind = None
    for name in names:
        kind = next((k for ending, k in HEADS if name.endswith(ending)), None)
        if kind:
            break
    if task == "embed":
        kind = "embed"
    elif task == "generate" and kind != "generate":
        raise Failure("bad_parameter", f"task: generate was asked for, and the model is a {', '.join(names) or config.model_type}, which does not generate text",
                      "Leave task out.")
    if kind is None:
        kind = "embed"
    auto = {"embed": transformers.AutoModel, "fill_mask": transformers.AutoModelForMaskedLM,
            "classify": transformers.AutoModelForSequenceClassification,
            "classify_tokens": transformers.AutoModelForTokenClassification}.get(kind)
    if kind == "generate":
        auto = transformers.AutoModelForCausalLM
        if getattr(config, "is_encoder_decoder", False):
            auto = transformers.AutoModelForSeq2SeqLM
        elif type(config) not in auto._model_mapping and not getattr(config, "auto_map", None):
            multimodal = getattr(transformers, "AutoModelForImageTextToText", None)
            if multimodal is not None and type(config) in multimodal._model_mapping:
                auto = multimodal
    return auto, kind


def load_weights(cls, path, config, settings, device, quantization):
    params = settings.get("params", {})
    options = {k: params[k] for k in PASSED_ON if params.get(k) is not None}
    options["dtype"] = dtype_of(params.get("dtype") or params.get("torch_dtype") or "auto", config, device)
    if settings.get("format") == "safetensors":
        options["use_safetensors"] = True
    if quantization is not None:
        options["quantization_config"] = quantization
    mapped = options.pop("device_map", None)
    if device != "cpu":
        # More than one device only if the planner gave more than one.
        mapped = mapped or ("auto" if torch.cuda.device_count() > 1 else {"": 0})
        if not has("accelerate"):
            mapped = without_accelerate(mapped, quantization)
            options.pop("max_memory", None)
        if mapped is not None:
            options.update(device_map=mapped, offload_folder=settings.get("offload_folder"))
    if isinstance(options.get("max_memory"), dict):
        options["max_memory"] = {int(k) if str(k).isdigit() else k: v for k, v in options["max_memory"].items()}
    try:
        model = cls.from_pretrained(path, config=config, trust_remote_code=bool(settings.get("trust_remote_code")), local_files_only=True, **options)
        return model.to("cuda:0") if device != "cpu" and mapped is None else model
    except Failure:
        raise
    except Exception as e:
        raise explain(e, {}, "The weights cannot be loaded")


def has(package):
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def without_accelerate(mapped, quantization):
    """The device_map without accelerate, which transformers asks for as soon as there is one: None, if the model can be loaded
    in RAM and then moved to its only GPU."""
    if quantization is not None or torch.cuda.device_count() > 1:
        why = "quantization_bits" if quantization is not None else f"a model on {torch.cuda.device_count()} GPUs"
        raise Failure("engine_missing", f"The Python environment of the engine has no accelerate, which {why} needs",
                      "Install accelerate into it, or run `llmm engine install transformers`.")
    log.info("accelerate is not installed: the weights are loaded in RAM and then moved to the GPU; device_map and max_memory mean nothing")
    return None


def dtype_of(name, config, device):
    if name == "auto":
        wanted = getattr(text_config(config), "dtype", None) or getattr(text_config(config), "torch_dtype", None)
        # Half precision is slow on most CPUs and not implemented for all layers; bfloat16 is fine everywhere.
        if device == "cpu" and str(wanted).replace("torch.", "") == "float16":
            return torch.float32
        return "auto"
    got = getattr(torch, name, None)
    if not isinstance(got, torch.dtype):
        raise Failure("bad_parameter", f"dtype {name!r} is none that torch knows", "Use auto, float32, float16 or bfloat16.")
    return got


def pool(hidden, mask, how):
    """One vector a row. hidden: [rows, tokens, size], mask: [rows, tokens] with 1 where there is a token (padding right)."""
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.sum(dim=1) - 1]
    wide = mask.unsqueeze(-1)
    if how == "max":
        return hidden.masked_fill(wide == 0, float("-inf")).max(dim=1).values
    return (hidden * wide).sum(dim=1) / wide.sum(dim=1).clamp(min=1)


@contextlib.contextmanager
def told_progress(control):
    """Tells the progress bars of transformers to the manager: tensors in version 5, shards before."""
    from transformers.utils import logging as bars
    real = bars.tqdm_lib

    class Told:
        def __init__(self, iterable=None, *args, desc=None, total=None, **kwargs):
            self._iterable = iterable
            self.total = total if total is not None else (len(iterable) if hasattr(iterable, "__len__") else 0)
            self.unit = "files" if desc and "shard" in desc.lower() else "tensors"
            self._counts = bool(desc) and "load" in desc.lower()
            self.n = 0

        def update(self, n=1):
            self.n += n
            if self._counts and self.total:
                control.stage("weights", done=min(self.n, self.total), total=self.total, unit=self.unit)

        def __iter__(self):
            for item in self._iterable:
                yield item
                self.update()

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

        def __getattr__(self, name):  # set_description, refresh, close: nothing to see
            return lambda *args, **kwargs: None

    # What every bar of theirs is made by, in version 4 and in 5.
    bars.tqdm_lib = types.SimpleNamespace(tqdm=Told)
    try:
        yield
    finally:
        bars.tqdm_lib = real


def explain(e, raw, what):
    """The Failure that an exception of transformers means."""
    line = first_line(e)
    # Version 4 hides what went wrong behind an error of its own.
    chain, link = [str(e)], e.__cause__ or e.__context__
    while link is not None and len(chain) < 5:
        chain.append(str(link))
        link = link.__cause__ or link.__context__
    low = "\n".join(chain).lower()
    if troubles.out_of_memory(e) or troubles.MEMORY.search(low):
        if "cuda" in low or "cublas" in low:
            return Failure("out_of_memory", f"{what}: the GPU ran out of memory: {line}", "Unload another model, choose a smaller one, or set quantization_bits to 8 or 4.")
        return Failure("out_of_memory", f"{what}: this machine ran out of memory: {line}", "Unload another model, choose a smaller one, or set dtype to bfloat16 if it is float32.")
    if "at least v2.6" in low:
        return Failure("engine_missing", f"{what}: the torch {torch.__version__} of this environment is too old to read weights in pickles safely, which needs 2.6 or later",
                       "Upgrade torch, run `llmm engine install transformers`, or use a safetensors copy of the model.")
    if "trust_remote_code" in chain[0].lower():
        return Failure("unsupported_architecture", "The model, or its tokenizer, brings code of its own, and trust_remote_code is false, so it was not run",
                       "Read the code in the repository; if you trust it, set trust_remote_code: true. It then runs with the rights of this server.")
    if "unpickling" in low or "weights_only" in low or "weights only" in low:
        return Failure("corrupt_file", f"The weights are a pickle that holds more than tensors, and it was not run: {line}",
                       "Use a safetensors copy of the model, or convert it on a machine where you trust it.")
    if type(e).__name__ == "SafetensorError" or "safetensor" in low and ("header" in low or "incomplete" in low or "deserializ" in low):
        return Failure("corrupt_file", f"{what}: a safetensors file is damaged or half copied: {line}", "Copy or download the files again.")
    if isinstance(e, (FileNotFoundError,)) or "no file named" in low or "does not appear to have a file" in low:
        return Failure("missing_file", f"{what}: {line}", "Put the missing file beside the others, or correct model_format.")
    if "does not recognize this architecture" in low or "unrecognized model" in low or "unrecognized configuration class" in low:
        kind = raw.get("model_type") or "unknown"
        return Failure("unsupported_architecture", f"transformers {transformers.__version__} does not know the architecture {kind!r}",
                       "Upgrade the engine (`llmm engine install transformers`), or use another engine for this model.")
    if "requires the following packages" in low or "requires `accelerate`" in low or isinstance(e, ImportError):
        return Failure("engine_missing", f"{what}: a Python package is missing: {line}", "Install it into the environment of the engine.")
    if "size mismatch" in low or "shape" in low and "mismatch" in low:
        return Failure("corrupt_file", f"{what}: config.json and the weights do not belong together: {line}", "Copy config.json and the weights from the same place and revision.")
    return Failure("crash", f"{what}: {type(e).__name__}: {line}", "The log has the whole traceback.")
