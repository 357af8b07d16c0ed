"""The worker of LLMModelManager's transformers loader: one process, one model, the OpenAI dialect.

It needs Python 3.9 or later, torch, transformers (4.57 or later) and safetensors, and nothing else. How data walks
through it:

    __main__   reads the settings, opens the port, loads, serves
    control    tells the manager how far the load is, and why it failed
    loading    config, tokenizer, weights -> Loaded
    web        HTTP/1.1 on asyncio: one task a connection
    dialect    JSON of a request -> a checked request object; results -> JSON
    generate   the thread that owns the model: batches of rows, one row a choice
    sampling   per-row sampling inside a batch
    text       tokens -> text, piece by piece; stop strings
    encode     embeddings, fill-mask, classification
"""
