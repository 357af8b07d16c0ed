"""Exports models to ONNX for the tests: python export_onnx.py MODELS MINILM FOLDER.

MODELS are the tiny ones of make_models.py, MINILM a folder with the real all-MiniLM-L6-v2 or "". For each, FOLDER gets one
as Optimum lays it out, with onnx/model.onnx, and a file expected.json with what torch itself answers.
"""

import importlib.machinery
import json
import os
import shutil
import sys
import types
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import onnxruntime
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = ["one", "a longer text than the first, by far", "漢字", "The capital of France is Paris."]


class Only(torch.nn.Module):
    """The model with one output."""

    def __init__(self, model, output):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_ids, attention_mask, token_type_ids):
        return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids), self.output)


def export(model, output, shape, path):
    # torch looks for functions of onnxscript in the graph, of which there are none, with a package that is not needed else.
    stub = types.ModuleType("onnx")
    stub.__spec__ = importlib.machinery.ModuleSpec("onnx", None)
    stub.load_model_from_string = lambda data: types.SimpleNamespace(graph=types.SimpleNamespace(node=[]))
    sys.modules["onnx"] = stub
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Only(model, output).eval(), (ids, mask, torch.zeros_like(ids)), path, input_names=names, output_names=[output],
                          dynamic_axes={**{n: {0: "batch", 1: "tokens"} for n in names}, output: shape}, opset_version=17, dynamo=False)
    del sys.modules["onnx"]


def folder(root, name, source):
    """A copy of the source's small files, and onnx/ in it."""
    path = os.path.join(root, name)
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    os.makedirs(os.path.join(path, "onnx"))
    return path


def expect(path, what):
    with open(os.path.join(path, "expected.json"), "w") as f:
        json.dump({"texts": TEXTS, **what}, f)


def vectors(model, tokenizer, how):
    """One text at a time, so that nothing is padded."""
    out = []
    with torch.inference_mode():
        for text in TEXTS:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            v = hidden[0] if how == "cls" else hidden.mean(0)
            out.append(torch.nn.functional.normalize(v, dim=-1).tolist())
    return out


def external(path):
    """Writes the graph anew with its weights in model.onnx_data, as those of more than 2 GB have to be."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = os.path.join(path, "external", "model.onnx")
    os.makedirs(os.path.join(path, "external"))
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx_data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(os.path.join(path, "onnx", "model.onnx"), options, providers=["CPUExecutionProvider"])


def main(models, minilm, root):
    hidden, rows = {0: "batch", 1: "tokens"}, {0: "batch"}
    for name, source, how in (("embedder", os.path.join(models, "bert-plain"), "cls"), ("minilm", minilm, "mean")):
        if not source:
            continue
        path = folder(root, name, source)
        model, tokenizer = AutoModel.from_pretrained(source, attn_implementation="eager").eval(), AutoTokenizer.from_pretrained(source)
        export(model, "last_hidden_state", hidden, os.path.join(path, "onnx", "model.onnx"))
        external(path)
        expect(path, {"vectors": vectors(model, tokenizer, how)})

    path = folder(root, "classifier", os.path.join(models, "classifier"))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(os.path.join(models, "classifier")).eval(), AutoTokenizer.from_pretrained(path)
    export(model, "logits", rows, os.path.join(path, "onnx", "model.onnx"))
    with torch.inference_mode():
        expect(path, {"scores": [torch.softmax(model(**tokenizer(t, return_tensors="pt")).logits[0], -1).tolist() for t in TEXTS]})

    path = folder(root, "filler", os.path.join(models, "bert"))
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(os.path.join(models, "bert")).eval(), AutoTokenizer.from_pretrained(path)
    export(model, "logits", hidden, os.path.join(path, "onnx", "model.onnx"))
    ids = tokenizer("a [MASK] c", return_tensors="pt")
    with torch.inference_mode():
        at = (ids["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        probs, tokens = torch.softmax(model(**ids).logits[0, at], -1).topk(3)
    expect(path, {"filled": [{"token": t, "score": p} for t, p in zip(tokens.tolist(), probs.tolist())]})


if __name__ == "__main__":
    main(*sys.argv[1:])
