"""Makes tiny models with random weights for the tests: python make_models.py FOLDER.

Each is one folder, a thousand to a million parameters, of an architecture that people use. Their tokenizer is a
byte-level one without merges, so that every text has tokens and none is whole characters alone.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM, Mamba2Config,
                          Mamba2ForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM, T5Config, T5ForConditionalGeneration)

CHAT = ("{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role: ' + m.role) }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")


def tokenizer(special):
    words = {}
    for word in special + sorted(pre_tokenizers.ByteLevel.alphabet()):
        words[word] = len(words)
    raw = Tokenizer(models.BPE(vocab=words, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw, words


def decoder_tokenizer(path, chat=True):
    raw, words = tokenizer(["<s>", "</s>", "<pad>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=4096)
    if chat:
        fast.chat_template = CHAT
    fast.save_pretrained(path)
    return len(words)


def bert_tokenizer(path):
    raw, words = tokenizer(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"])
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])])
    PreTrainedTokenizerFast(tokenizer_object=raw, cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]",
                            model_max_length=512).save_pretrained(path)
    return len(words)


def save_pickled(model, path):
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), os.path.join(path, "pytorch_model.bin"))


def main(root):
    def folder(name):
        path = os.path.join(root, name)
        os.makedirs(path, exist_ok=True)
        return path

    torch.manual_seed(7)
    path = folder("llama")
    n = decoder_tokenizer(path)
    small = dict(vocab_size=n, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    # Weights of the usual size give nearly even odds, so that rounding would choose between tokens. These do not.
    llama = LlamaForCausalLM(LlamaConfig(**small, initializer_range=0.3))
    llama.save_pretrained(path)

    path = folder("llama-sharded")
    decoder_tokenizer(path)
    llama.save_pretrained(path, max_shard_size="100KB")

    path = folder("llama-half")
    decoder_tokenizer(path, chat=False)
    llama.to(torch.bfloat16).save_pretrained(path)

    path = folder("moe")
    decoder_tokenizer(path)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**small, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16, initializer_range=0.3)).save_pretrained(path)

    path = folder("mamba")
    decoder_tokenizer(path)
    Mamba2ForCausalLM(Mamba2Config(vocab_size=n, hidden_size=64, state_size=16, num_hidden_layers=2, num_heads=8, head_dim=16, n_groups=1, expand=2,
                                   bos_token_id=0, eos_token_id=1, pad_token_id=2)).save_pretrained(path)

    path = folder("t5")
    decoder_tokenizer(path, chat=False)
    T5ForConditionalGeneration(T5Config(vocab_size=n, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=2, eos_token_id=1,
                                        pad_token_id=2)).save_pretrained(path)

    bert = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512, pad_token_id=0)
    path = folder("bert")
    n = bert_tokenizer(path)
    save_pickled(BertForMaskedLM(BertConfig(vocab_size=n, architectures=["BertForMaskedLM"], **bert)), path)

    path = folder("bert-plain")
    bert_tokenizer(path)
    BertModel(BertConfig(vocab_size=n, **bert)).save_pretrained(path)
    with open(os.path.join(path, "modules.json"), "w") as f:
        json.dump([{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
                   {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                   {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}], f)
    os.makedirs(os.path.join(path, "1_Pooling"), exist_ok=True)
    with open(os.path.join(path, "1_Pooling", "config.json"), "w") as f:
        json.dump({"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, f)

    path = folder("classifier")
    bert_tokenizer(path)
    BertForSequenceClassification(BertConfig(vocab_size=n, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2},
                                             **bert)).save_pretrained(path)


if __name__ == "__main__":
    main(sys.argv[1])
