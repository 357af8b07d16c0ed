"""What the small files of a model's folder say. Neither torch nor transformers is needed for that."""

import json
import os

from .control import Failure


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            got = json.load(f)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise Failure("corrupt_file", f"{os.path.basename(path)} cannot be read: {e}", "Copy or download the file again.")
    if not isinstance(got, dict):
        raise Failure("corrupt_file", f"{os.path.basename(path)} is not a JSON object", "Copy or download the file again.")
    return got


def weight_bytes(path, settings):
    """Bytes of the files that the weights are read from, 0 where that is not plain to see."""
    if settings.get("params", {}).get("variant"):
        return 0
    name = "model.safetensors" if settings.get("format") == "safetensors" else "pytorch_model.bin"
    names = [name]
    if not os.path.isfile(os.path.join(path, name)):
        shards = read_json(os.path.join(path, name + ".index.json")).get("weight_map")
        names = {n for n in shards.values() if isinstance(n, str)} if isinstance(shards, dict) else []
    try:
        return sum(os.path.getsize(os.path.join(path, n)) for n in names)
    except OSError:
        return 0


def in_words(size):
    """Bytes, for people: 24.5 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def named_type(source, known):
    """The longest of the known model types that the model's name has in it, "" if there is none. Repositories from before 2020
    often say in no other way what they are: prajjwal1/bert-tiny. transformers went by the name up to version 4. Short words
    are left out, since they are in many names by chance: opt, git, vit."""
    name = os.path.basename(source.rstrip("/")).lower()
    return max((k for k in known if len(k) > 3 and k in name), key=len, default="")


def text_config(config):
    """The part of a multimodal config that speaks of the language model."""
    get = getattr(config, "get_text_config", None)
    return get() if get is not None else config


def context_length(config, tokenizer, settings):
    """Tokens of prompt and answer: what was asked for, at most what the model was made for."""
    text = text_config(config)
    own = 0
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            own = value
            break
    if getattr(text, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "bigbird_roberta"):
        own = max(own - 2, 0)  # the first positions are those of padding
    limit = getattr(tokenizer, "model_max_length", 0) or 0
    if 0 < limit < 1_000_000 and (own == 0 or not_generating(config)):
        own = min(own or limit, limit)
    asked = int(settings.get("context_length") or 0)
    if asked and own:
        return min(asked, own)
    return asked or own or 2048


def not_generating(config):
    return not any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in getattr(config, "architectures", None) or [])


def pooling(path, settings):
    """How token vectors become one, and whether it is normalised: as sentence-transformers' files say, else mean."""
    params = settings.get("params", {})
    how, normalize = "mean", False
    modules = os.path.join(path, "modules.json")
    if os.path.isfile(modules):
        try:
            with open(modules, encoding="utf-8") as f:
                listed = json.load(f)
        except (OSError, ValueError) as e:
            raise Failure("corrupt_file", f"modules.json cannot be read: {e}", "Copy or download the file again.")
        for module in listed if isinstance(listed, list) else []:
            if not isinstance(module, dict):
                raise Failure("corrupt_file", "modules.json is not a list of steps", "Copy or download the file again.")
            kind = str(module.get("type", "")).rsplit(".", 1)[-1]
            if kind == "Normalize":
                normalize = True
            elif kind == "Pooling":
                how = params.get("pooling") or pooling_of(path, str(module.get("path", "")))
            elif kind not in ("Transformer", "Dropout"):  # one that does nothing once a model is trained
                raise Failure("unsupported_architecture", f"modules.json adds a step {kind or 'without a name'} to the model, which is not done here: the vectors would be wrong",
                              "Use a model that ends with pooling, or serve this one with sentence-transformers by the engine command.")
    return params.get("pooling") or how, bool(params.get("normalize", normalize))


def pooling_of(path, module):
    if not os.path.isfile(os.path.join(path, module, "config.json")):
        raise Failure("missing_file", f"modules.json names a pooling in {module or 'the folder itself'}, and there is no config.json of it",
                      "Copy the folder from where the model came from, or set pooling in custom_loader_params.")
    config = read_json(os.path.join(path, module, "config.json"))
    named = {"pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean"}
    on = [how for key, how in named.items() if config.get(key)]
    if len(on) != 1:
        mode = config.get("pooling_mode")
        if isinstance(mode, str) and mode in ("cls", "lasttoken", "max", "mean"):
            return "last" if mode == "lasttoken" else mode
        raise Failure("unsupported_architecture", "1_Pooling/config.json asks for a pooling that this worker does not do",
                      "Set pooling to mean, cls, last or max in custom_loader_params if one of them is right for the model.")
    return on[0]


def first_line(e):
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(e).__name__
