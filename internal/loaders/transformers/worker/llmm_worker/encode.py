"""Answers that are not text: embeddings, fill-mask, classification. Called on the model's thread."""

import base64

import torch

from .dialect import Reader, Refused, token_lists

# Rows that go through the model at once, and the tokens of padding and all that they may have together.
MAX_ROWS = 64
MAX_TOKENS = 32768


def embeddings(body, loaded):
    """Checks a request of /v1/embeddings; returns a function that computes the answer on the model's thread."""
    r = Reader(body, {"input", "encoding_format", "dimensions"})
    form = r.raw("encoding_format", "float")
    if form not in ("float", "base64"):
        raise Refused("encoding_format must be float or base64", "encoding_format")
    lists = token_lists(r.raw("input"), "input", loaded.tokenizer)
    _fits(lists, loaded, "input")
    size = getattr(loaded.config, "hidden_size", None)
    dimensions = r.integer("dimensions", None, 1, size or 65536)

    def compute():
        vectors = _embed(lists, loaded)
        if dimensions is not None and dimensions < vectors.shape[1]:
            vectors = torch.nn.functional.normalize(vectors[:, :dimensions], dim=-1)
        rows = vectors.float().cpu()
        if form == "base64":
            shown = [base64.b64encode(row.numpy().astype("<f4").tobytes()).decode() for row in rows]
        else:
            shown = rows.tolist()
        tokens = sum(len(ids) for ids in lists)
        return {"object": "list", "model": loaded.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(shown)]}

    return compute


def _fits(lists, loaded, name):
    longest = max(len(ids) for ids in lists)
    if longest > loaded.context_length:
        raise Refused(f"{name} has {longest} tokens, and the model takes {loaded.context_length} at once", name, code="context_length_exceeded")


def batches(lists):
    """Indices of lists in groups that go through the model together, the longest first so that little is padded."""
    order = sorted(range(len(lists)), key=lambda i: -len(lists[i]))
    group = []
    for i in order:
        longest = len(lists[group[0]]) if group else len(lists[i])
        if group and (len(group) == MAX_ROWS or longest * (len(group) + 1) > MAX_TOKENS):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _padded(lists, group, loaded):
    longest = max(len(lists[i]) for i in group)
    ids = [lists[i] + [loaded.pad_id] * (longest - len(lists[i])) for i in group]
    mask = [[1] * len(lists[i]) + [0] * (longest - len(lists[i])) for i in group]
    device = loaded.input_device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _embed(lists, loaded):
    out = [None] * len(lists)
    with torch.inference_mode():
        model = loaded.model.base_model if loaded.kind != "embed" else loaded.model
        for group in batches(lists):
            ids, mask = _padded(lists, group, loaded)
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = pool(hidden, mask, loaded.pooling)
            if loaded.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=-1)
            for row, i in enumerate(group):
                out[i] = pooled[row]
    return torch.stack(out)


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


def fill_mask(body, loaded):
    """POST /v1/fill-mask {input, top_k}: the likeliest tokens at each mask of each text."""
    r = Reader(body, {"input", "top_k"})
    top = r.integer("top_k", 5, 1, 100)
    lists = token_lists(r.raw("input"), "input", loaded.tokenizer)
    _fits(lists, loaded, "input")
    mask_id = loaded.tokenizer.mask_token_id
    for i, ids in enumerate(lists):
        if mask_id not in ids:
            raise Refused(f"input[{i}] has no {loaded.tokenizer.mask_token} in it", "input")

    def compute():
        data = [None] * len(lists)
        with torch.inference_mode():
            for group in batches(lists):
                ids, mask = _padded(lists, group, loaded)
                logits = loaded.model(input_ids=ids, attention_mask=mask).logits
                for row, i in enumerate(group):
                    places = []
                    for at in (ids[row] == mask_id).nonzero().flatten().tolist():
                        probs, tokens = torch.softmax(logits[row, at].float(), dim=-1).topk(top)
                        places.append([{"token": t, "token_str": loaded.tokenizer.decode([t]).strip(), "score": p}
                                       for t, p in zip(tokens.tolist(), probs.tolist())])
                    data[i] = {"index": i, "masks": places}
        return {"object": "list", "model": loaded.name, "data": data}

    return compute


def classify(body, loaded):
    """POST /v1/classify {input}: the label of each text with the score of every label."""
    r = Reader(body, {"input"})
    lists = token_lists(r.raw("input"), "input", loaded.tokenizer)
    _fits(lists, loaded, "input")
    labels = loaded.config.id2label
    independent = getattr(loaded.config, "problem_type", None) == "multi_label_classification" or len(labels) == 1

    def compute():
        data = [None] * len(lists)
        with torch.inference_mode():
            for group in batches(lists):
                ids, mask = _padded(lists, group, loaded)
                logits = loaded.model(input_ids=ids, attention_mask=mask).logits.float()
                scores = torch.sigmoid(logits) if independent else torch.softmax(logits, dim=-1)
                for row, i in enumerate(group):
                    told = scores[row].tolist()
                    best = max(range(len(told)), key=told.__getitem__)
                    data[i] = {"index": i, "label": labels[best], "scores": {labels[k]: p for k, p in enumerate(told)}}
        return {"object": "list", "model": loaded.name, "data": data}

    return compute
