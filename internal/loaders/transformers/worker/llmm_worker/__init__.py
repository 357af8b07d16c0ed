"""The worker of LLMModelManager's transformers loader: one process, one model, the OpenAI dialect.

It needs Python 3.9 or later, torch, transformers (4.57 or later) and safetensors; for ONNX models onnxruntime, and
tokenizers, which transformers brings; and nothing else. How data walks
through it:

    __main__   reads the settings, opens the socket, loads, serves
    control    tells the manager how far the load is, and why it failed
    folder     what the small files of a model say
    early      what is wrong with them, before torch is imported
    loading    config, tokenizer, weights -> a model of torch
    onnx       the same for onnxruntime, without torch
    web        HTTP/1.1 on asyncio: one task a connection
    dialect    JSON of a request -> a checked request object; results -> JSON
    jobs       the thread that owns the model
    troubles   out of memory, or broken for good
    rows       what is asked of it: one row a choice
    generate   that thread for text: batches of rows
    sampling   per-row sampling inside a batch
    text       tokens -> text, piece by piece; stop strings
    encode     embeddings, fill-mask, classification
"""
