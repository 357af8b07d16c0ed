"""The tokenizer without torch: what tokenizer.json says, through the library below transformers' own."""

import os

from tokenizers import Tokenizer

from .control import Failure
from .folder import first_line, read_json

# One of these says that a folder has a tokenizer.
FILES = ["tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer_config.json"]


class Tokens:
    """As much of a tokenizer of transformers as requests need."""

    def __init__(self, inner, config, special):
        self.inner = inner
        # The file may ask to cut or to fill up every text, which is for training.
        inner.no_truncation()
        inner.no_padding()
        self.model_max_length = config.get("model_max_length") if isinstance(config.get("model_max_length"), (int, float)) else None
        self.mask_token, self.mask_token_id = self._special("mask_token", config, special, ("[MASK]", "<mask>"))
        pad = self._special("pad_token", config, special, ("[PAD]", "<pad>"))[1]
        self.pad_id = 0 if pad is None else pad

    def _special(self, name, config, special, usual):
        for told in (config.get(name), special.get(name), *usual):
            text = told.get("content") if isinstance(told, dict) else told
            if isinstance(text, str) and text and self.inner.token_to_id(text) is not None:
                return text, self.inner.token_to_id(text)
        return None, None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": self.inner.encode(text, add_special_tokens=add_special_tokens).ids}

    def __len__(self):
        return self.inner.get_vocab_size(with_added_tokens=True)

    def decode(self, ids):
        return self.inner.decode(ids, skip_special_tokens=False)


class Slow:
    """A tokenizer of transformers, for folders without tokenizer.json."""

    def __init__(self, inner):
        self.inner = inner
        self.model_max_length = inner.model_max_length
        self.mask_token, self.mask_token_id = inner.mask_token, inner.mask_token_id
        self.pad_id = inner.pad_token_id if inner.pad_token_id is not None else 0

    def __call__(self, text, add_special_tokens=True):
        return self.inner(text, add_special_tokens=add_special_tokens)

    def __len__(self):
        return len(self.inner)

    def decode(self, ids):
        return self.inner.decode(ids)


def load(path, settings):
    """The tokenizer of a folder. Raises Failure."""
    file = os.path.join(path, "tokenizer.json")
    if not os.path.isfile(file):
        if not any(os.path.isfile(os.path.join(path, name)) for name in FILES):
            raise Failure("missing_file", f"There is no tokenizer in {path}",
                          "Copy tokenizer.json and tokenizer_config.json beside the model, or set tokenizer_path to a folder that has them.")
        from . import loading  # imports torch, which such folders have to wait for
        return Slow(loading.load_tokenizer(path, settings, None))
    try:
        inner = Tokenizer.from_file(file)
    except Exception as e:
        raise Failure("corrupt_file", f"tokenizer.json cannot be read: {first_line(e)}", "Copy or download the file again.")
    return Tokens(inner, read_json(os.path.join(path, "tokenizer_config.json")), read_json(os.path.join(path, "special_tokens_map.json")))
