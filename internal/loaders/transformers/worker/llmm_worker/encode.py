"""Answers that are not text: embeddings, fill-mask, classification.

Each of the three checks a request and returns a function that computes the answer on the model's thread. The model is one
of loading or of onnx; what is asked of it:

    embed(lists) -> float32 [rows, size]                 a vector for each list of tokens
    logits_at(lists, places) -> float32 [places, words]  of masked language models; a place is (row, token)
    logits(lists) -> float32 [rows, labels]              of classifiers
"""

import base64

import numpy as np

from .dialect import Reader, Refused, token_lists


def embeddings(body, loaded):
    """POST /v1/embeddings {input, encoding_format, dimensions}, as OpenAI has it."""
    r = Reader(body, {"input", "encoding_format", "dimensions"})
    form = r.raw("encoding_format", "float")
    if form not in ("float", "base64"):
        raise Refused("encoding_format must be float or base64", "encoding_format")
    lists = _lists(r, loaded)
    dimensions = r.integer("dimensions", None, 1, getattr(loaded.config, "hidden_size", None) or 65536)

    def compute():
        rows = _each(lists, loaded, loaded.embed)
        if dimensions is not None and dimensions < len(rows[0]):
            rows = normalized(np.stack(rows)[:, :dimensions])
        shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() if form == "base64" else row.tolist() for row in rows]
        tokens = sum(len(ids) for ids in lists)
        return {"object": "list", "model": loaded.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(shown)]}

    return compute


def fill_mask(body, loaded):
    """POST /v1/fill-mask {input, top_k}: the likeliest tokens at each mask of each text."""
    r = Reader(body, {"input", "top_k"})
    top = r.integer("top_k", 5, 1, 100)
    lists = _lists(r, loaded)
    mask_id = loaded.tokenizer.mask_token_id
    for i, ids in enumerate(lists):
        if mask_id not in ids:
            raise Refused(f"input[{i}] has no {loaded.tokenizer.mask_token} in it", "input")

    def guesses(group):
        places = [(row, at) for row, ids in enumerate(group) for at, token in enumerate(ids) if token == mask_id]
        out = [[] for _ in group]
        for (row, _), logits in zip(places, loaded.logits_at(group, places)):
            probs = softmax(logits)
            best = np.argsort(-probs, kind="stable")[:top].tolist()
            out[row].append([{"token": t, "token_str": loaded.tokenizer.decode([t]).strip(), "score": float(probs[t])} for t in best])
        return out

    def compute():
        return {"object": "list", "model": loaded.name,
                "data": [{"index": i, "masks": masks} for i, masks in enumerate(_each(lists, loaded, guesses))]}

    return compute


def classify(body, loaded):
    """POST /v1/classify {input}: the label of each text with the score of every label."""
    r = Reader(body, {"input"})
    lists = _lists(r, loaded)

    def compute():
        data = []
        for i, logits in enumerate(_each(lists, loaded, loaded.logits)):
            independent = getattr(loaded.config, "problem_type", None) == "multi_label_classification" or len(logits) == 1
            scores = (1 / (1 + np.exp(-logits)) if independent else softmax(logits)).tolist()
            names = [label_of(loaded.config, k) for k in range(len(scores))]
            data.append({"index": i, "label": names[int(np.argmax(logits))], "scores": dict(zip(names, scores))})
        return {"object": "list", "model": loaded.name, "data": data}

    return compute


def label_of(config, k):
    """The name of a label. transformers keeps them by number, config.json by the number's digits."""
    names = getattr(config, "id2label", None) or {}
    return str(names.get(k, names.get(str(k), f"LABEL_{k}")))


def _lists(r, loaded):
    lists = token_lists(r.raw("input"), "input", loaded.tokenizer)
    longest = max(len(ids) for ids in lists)
    if longest > loaded.context_length:
        raise Refused(f"input has {longest} tokens, and the model takes {loaded.context_length} at once", "input", code="context_length_exceeded")
    return lists


def _each(lists, loaded, compute):
    """What compute returns for each of the lists, which go through the model in groups."""
    out = [None] * len(lists)
    for group in batches(lists, loaded.rows_at_once, loaded.tokens_at_once):
        for i, got in zip(group, compute([lists[i] for i in group])):
            out[i] = got
    return out


def batches(lists, max_rows, max_tokens):
    """Indices of lists in groups that go through the model together, the longest first so that little is padded. The tokens
    of a group, padding and all, are at most max_tokens, unless it is of one."""
    order = sorted(range(len(lists)), key=lambda i: -len(lists[i]))
    group = []
    for i in order:
        longest = len(lists[group[0]]) if group else len(lists[i])
        if group and (len(group) == max_rows or longest * (len(group) + 1) > max_tokens):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def padded(lists, pad_id):
    """Tokens and mask as int64 [rows, tokens]: padding is on the right, where the mask is 0."""
    longest = max(len(ids) for ids in lists)
    tokens = np.full((len(lists), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(lists), longest), dtype=np.int64)
    for row, ids in enumerate(lists):
        tokens[row, :len(ids)] = ids
        mask[row, :len(ids)] = 1
    return tokens, mask


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def normalized(vectors):
    """Each row with the length 1; one of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
