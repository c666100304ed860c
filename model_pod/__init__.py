"""An OpenAI-compatible model server with two engines behind one protocol.

    __main__        starts and stops everything
    config          command line -> Settings
    server          HTTP routes (aiohttp)
    openai          request validation, answer and SSE shapes
    engine          the protocol: Prompt and Params in, a Stream of Deltas out
    fake_engine     a GPU engine's behaviour without a GPU, on fake_scheduler (pure)
    torch_engine    transformers: continuous batching, or plain generation where a model needs it
    tiny            the random model and tokenizer of --tiny, built once into the cache folder
    text            stop sequences, incremental detokenisation (pure)
    metrics, health what operators see: vLLM's metric names, grpc.health.v1

Nothing here imports the mesh; only torch_engine and tiny import torch and transformers.
"""
