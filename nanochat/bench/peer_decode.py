"""What runs inside a peer's process.   in: a setting as JSON   out: seconds as JSON
who calls: decode.py: with a checkout of karpathy/nanochat on PYTHONPATH, or with an interpreter
that has llama_cpp

Imports nothing of ours.  For each number of rows: a prompt of 100 tokens alone (time to the first
token), then every row reads its context, then steps of one token each; the seconds of every step.
"""

import json
import sys
import time
from typing import Any

__all__ = ["llama_cpp_steps", "main", "nanochat_steps"]


def main(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """For each batch size: {"batch_size", "ttft_s", "seconds"}."""
    measure = llama_cpp_steps if setting["peer"] == "llama_cpp" else nanochat_steps
    return list(measure(setting))


def nanochat_steps(setting: dict[str, Any]) -> Any:
    """karpathy/nanochat's own model and cache, rows at one position, as its Engine runs them."""
    import torch

    from nanochat.engine import KVCache  # type: ignore[attr-defined, import-not-found, import-untyped, unused-ignore]
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[attr-defined, import-not-found, import-untyped, unused-ignore]

    torch.manual_seed(0)
    torch.set_num_threads(setting["num_threads"])
    config = GPTConfig(**setting["config"])
    model = GPT(config)
    model.init_weights()
    dtype = getattr(torch, setting["dtype"])
    model = model.to(dtype).eval()  # in bfloat16: cast once, which its engine does every step
    shape = {
        "num_heads": config.n_kv_head,
        "head_dim": config.n_embd // config.n_head,
        "num_layers": config.n_layer,
        "device": "cpu",
        "dtype": dtype,
    }
    context, num_steps = setting["context"], setting["num_steps"]
    with torch.inference_mode():
        for batch_size in setting["batch_sizes"]:
            prompt = torch.arange(2, 102)[None]
            first_s = []
            for _ in range(3):
                cache = KVCache(batch_size=1, seq_len=128, **shape)
                start_s = time.perf_counter()
                model.forward(prompt, kv_cache=cache)[:, -1].argmax(-1).tolist()
                first_s.append(time.perf_counter() - start_s)
            cache = KVCache(batch_size=batch_size, seq_len=context + num_steps + 1, **shape)
            tokens = torch.arange(context)[None].expand(batch_size, -1)
            logits = model.forward(tokens, kv_cache=cache)
            seconds = []
            for _ in range(num_steps):
                start_s = time.perf_counter()
                chosen = logits[:, -1].argmax(-1)
                chosen.tolist()
                logits = model.forward(chosen[:, None], kv_cache=cache)
                seconds.append(time.perf_counter() - start_s)
            yield {"batch_size": batch_size, "ttft_s": min(first_s), "seconds": seconds}


def llama_cpp_steps(setting: dict[str, Any]) -> Any:
    """llama.cpp's own context and batches, by the bindings' plain functions."""
    import llama_cpp as lib  # type: ignore[import-not-found, unused-ignore]

    lib.llama_backend_init()
    silent = lib.llama_log_callback(lambda *arguments: None)
    lib.llama_log_set(silent, None)
    parameters = lib.llama_model_default_params()
    parameters.use_extra_bufts = setting["is_repacked"]
    model = lib.llama_model_load_from_file(setting["file"].encode(), parameters)
    if not model:
        raise RuntimeError(f"llama.cpp cannot read {setting['file']}")
    context, num_steps = setting["context"], setting["num_steps"]
    for batch_size in setting["batch_sizes"]:
        options = lib.llama_context_default_params()
        options.n_ctx = (context + num_steps + 128) * batch_size
        options.n_batch = options.n_ubatch = 512
        options.n_seq_max = batch_size
        options.n_threads = options.n_threads_batch = setting["num_threads"]
        state = lib.llama_init_from_model(model, options)
        batch = lib.llama_batch_init(512, 0, 1)

        def feed(rows: list[tuple[int, int, int]], state: Any = state, batch: Any = batch) -> None:
            """Tokens as (token, position, row); the last of each row gives logits."""
            batch.n_tokens = len(rows)
            last = {row: index for index, (_, _, row) in enumerate(rows)}
            for index, (token, position, row) in enumerate(rows):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = last[row] == index
            if lib.llama_decode(state, batch):
                raise RuntimeError("llama_decode failed")
            lib.llama_get_logits_ith(state, len(rows) - 1)  # waits until they are there

        first_s = []
        for _ in range(3):
            lib.llama_memory_clear(lib.llama_get_memory(state), True)
            start_s = time.perf_counter()
            feed([(token, token, 0) for token in range(100)])
            first_s.append(time.perf_counter() - start_s)
        lib.llama_memory_clear(lib.llama_get_memory(state), True)
        for row in range(batch_size):
            for start in range(0, context, 512):
                stop = min(context, start + 512)
                feed([(position % 1000, position, row) for position in range(start, stop)])
        seconds = []
        for step in range(num_steps):
            start_s = time.perf_counter()
            feed([(step, context + step, row) for row in range(batch_size)])
            seconds.append(time.perf_counter() - start_s)
        yield {"batch_size": batch_size, "ttft_s": min(first_s), "seconds": seconds}
        lib.llama_batch_free(batch)
        lib.llama_free(state)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
