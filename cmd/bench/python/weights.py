"""Makes Llamas with random weights: python weights.py tiny FOLDER, or python weights.py large FOLDER

The large one has half a billion parameters in bfloat16, about 1 GB: FOLDER/safetensors is for transformers,
FOLDER/model.gguf the same shape for llama.cpp and Ollama. The tiny one has half a million in float32, for transformers only.
Nearly all tokens are words of their own, so that every token that is generated is a piece of text.
"""

import json
import os
import struct
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LARGE = len(sys.argv) > 1 and sys.argv[1] == "large"
DIM, INNER, LAYERS, HEADS, KV = (1536, 6144, 14, 12, 4) if LARGE else (64, 128, 2, 4, 2)
VOCAB, CONTEXT = 4096, 4096
DTYPE = torch.bfloat16 if LARGE else torch.float32


def words():
    """The 256 letters for bytes as GPT-2 writes them, behind three special words."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out, extra = ["<s>", "</s>", "<pad>"], 0
    for b in range(256):
        out.append(chr(b) if b in plain else chr(256 + extra))
        extra += b not in plain
    out.append("\u0120\u0120")
    while len(out) < VOCAB:
        out.append("\u0120word%d" % len(out))
    return out


def safetensors(folder):
    config = LlamaConfig(hidden_size=DIM, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV, vocab_size=VOCAB,
                         max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])
    config.dtype = DTYPE
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    os.makedirs(folder, exist_ok=True)
    weights = {name: torch.ones(p.shape, dtype=DTYPE) if "norm" in name else torch.randn(p.shape, dtype=DTYPE) * 0.02
               for name, p in model.state_dict().items()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config.save_pretrained(folder)
    raw = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words())}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=CONTEXT).save_pretrained(folder)


def gguf(path):
    """Version 3 of the format: a header, metadata, what tensors there are, then these at multiples of 32 bytes."""
    u32, f32, string, array, int32 = 4, 6, 8, 9, 5

    def text(s):
        b = s.encode()
        return struct.pack("<Q", len(b)) + b

    def entry(key, kind, value):
        return text(key) + struct.pack("<I", kind) + value

    def number(key, n):
        return entry(key, u32, struct.pack("<I", n))

    def listed(key, kind, items):
        return entry(key, array, struct.pack("<IQ", kind, len(items)) + b"".join(items))

    meta = [entry("general.architecture", string, text("llama")), entry("general.name", string, text("bench")), number("general.file_type", 32),
            number("llama.context_length", CONTEXT), number("llama.embedding_length", DIM), number("llama.block_count", LAYERS),
            number("llama.feed_forward_length", INNER), number("llama.attention.head_count", HEADS), number("llama.attention.head_count_kv", KV),
            number("llama.vocab_size", VOCAB), number("llama.rope.dimension_count", DIM // HEADS),
            entry("llama.rope.freq_base", f32, struct.pack("<f", 10000.0)), entry("llama.attention.layer_norm_rms_epsilon", f32, struct.pack("<f", 1e-6)),
            entry("tokenizer.ggml.model", string, text("gpt2")), entry("tokenizer.ggml.pre", string, text("default")),
            listed("tokenizer.ggml.tokens", string, [text(w) for w in words()]),
            listed("tokenizer.ggml.token_type", int32, [struct.pack("<i", 3 if i < 3 else 1) for i in range(VOCAB)]),
            listed("tokenizer.ggml.merges", string, [text("\u0120 \u0120")]), number("tokenizer.ggml.bos_token_id", 0),
            number("tokenizer.ggml.eos_token_id", 1), number("tokenizer.ggml.padding_token_id", 2)]
    kv = DIM // HEADS * KV
    tensors = [("token_embd.weight", (DIM, VOCAB)), ("output_norm.weight", (DIM,)), ("output.weight", (DIM, VOCAB))]
    for i in range(LAYERS):
        tensors += [(f"blk.{i}.{name}.weight", shape) for name, shape in (
            ("attn_norm", (DIM,)), ("attn_q", (DIM, DIM)), ("attn_k", (DIM, kv)), ("attn_v", (DIM, kv)), ("attn_output", (DIM, DIM)),
            ("ffn_norm", (DIM,)), ("ffn_gate", (DIM, INNER)), ("ffn_up", (DIM, INNER)), ("ffn_down", (INNER, DIM)))]
    infos, at, counts = [], 0, []
    for name, shape in tensors:
        n = shape[0] * (shape[1] if len(shape) == 2 else 1)
        norm = len(shape) == 1  # in float32 as always, the others in bfloat16
        infos.append(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0 if norm else 30, at))
        counts.append((n, norm))
        at += -(-n * (4 if norm else 2) // 32) * 32
    with open(path, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(meta) + b"".join(infos))
        f.write(bytes(-f.tell() % 32))
        for n, norm in counts:
            t = torch.ones(n) if norm else torch.randn(n, dtype=torch.bfloat16) * 0.02
            f.write(memoryview((t if norm else t.view(torch.int16)).numpy()).cast("B"))
            f.write(bytes(-f.tell() % 32))


if __name__ == "__main__":
    torch.manual_seed(1)
    safetensors(os.path.join(sys.argv[2], "safetensors"))
    if LARGE:
        gguf(os.path.join(sys.argv[2], "model.gguf"))
    with open(os.path.join(sys.argv[2], "complete"), "w") as done:
        json.dump(sys.argv[1], done)
