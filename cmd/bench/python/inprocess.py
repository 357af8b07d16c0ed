"""The worker's model without its HTTP: python inprocess.py, with the environment of a worker.

Reads {"how": "engine" or "plain", "prompt": text, "tokens": n} from a line of stdin and answers with {"ns": nanoseconds,
"text": text}. "engine" is the worker's own queue, thread and sampling, from the prompt's text to the answer's; "plain" is
model.generate() of transformers between a tokenizer and its decode().
"""

import json
import os
import sys
import threading
import time

import torch
from llmm_worker import generate, loading
from llmm_worker.rows import Row, Sampling


class Silent:
    def stage(self, *args, **kwargs):
        pass


def by_engine(engine, loaded, prompt, tokens):
    done, texts = threading.Event(), []

    def sink(piece):
        if piece.error is not None:
            raise piece.error
        texts.append(piece.text)
        if piece.finish is not None:
            done.set()

    engine.submit([Row(loaded.tokenizer(prompt)["input_ids"], Sampling(temperature=0.0), tokens, [], sink, ignore_eos=True)])
    done.wait()
    return "".join(texts)


def by_generate(loaded, prompt, tokens):
    ids = loaded.tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = loaded.model.generate(**ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=loaded.pad_id, eos_token_id=None)
    return loaded.tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True)


def main():
    loaded = loading.load(json.loads(os.environ["LLMM_WORKER"]), Silent())
    engine = generate.Engine(loaded, 8, 65536)
    print(json.dumps({"ns": 0, "text": ""}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter_ns()
        if asked["how"] == "engine":
            text = by_engine(engine, loaded, asked["prompt"], asked["tokens"])
        else:
            text = by_generate(loaded, asked["prompt"], asked["tokens"])
        print(json.dumps({"ns": time.perf_counter_ns() - began, "text": text}), flush=True)


if __name__ == "__main__":
    main()
