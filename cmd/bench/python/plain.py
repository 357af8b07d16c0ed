"""What somebody would write without us: python plain.py FOLDER. Prints a line when the model has answered."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model.eval()
with torch.inference_mode():
    model(**tokenizer("Hi", return_tensors="pt"))
print("answered", flush=True)
sys.stdin.read()
