"""An OpenAI-compatible model server with two engines behind one protocol.

    __main__        starts and stops everything
    config          command line -> Settings
    server          HTTP routes (aiohttp)
    openai          request validation, answer and SSE shapes
    engine          the protocol: Prompt and Params in, a Stream of Deltas out
    fake_engine     a GPU engine's behaviour without a GPU, on fake_scheduler (pure)
    faults          what the fake engine can be told to do wrong, and which of it applies when (pure)
    fault_switch    the fault in force, and the listener that sets it
    faulty_server   the server with faults: what they make of its answers and its ports
    torch_engine    transformers: continuous batching, or plain generation where a model needs it
    tiny            the random model and tokenizer of --tiny, built once into the cache folder
    text            stop sequences, incremental detokenisation (pure)
    metrics, health what operators see: vLLM's metric names, grpc.health.v1

Nothing here imports the mesh; only torch_engine and tiny import torch and transformers.
"""
