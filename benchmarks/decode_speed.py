"""What does measuring decode cost, and is the loop that is measured as fast as transformers' own?

    python benchmarks/decode_speed.py [--model 100m] [--tokens N] [--rounds N] [--threads N]
        [--compile-generate]

In one process, in turns: perfline's eager and compiled loop (``engines.decode``), the bare forwards
of each (the same calls, no clock between them), and ``model.generate`` with its own static cache,
greedy and never ending early; compiled by itself only where asked for, which takes minutes on a
CPU. All give the same tokens, or it says so. Prints tokens a second (prompt and tokens together) as
the median of the rounds, the ratio to generate, what the clock costs (bare / measured, in CPU
seconds: other processes do not weigh on them), and the share of the measured loop that lies between
its marks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers

from perfline.cases.case import Case, EngineSpec, ModelSpec
from perfline.engines import decode, hf
from perfline.engines.device import current_device

WIDTH = 128
MODELS: dict[str, dict[str, object]] = {
    "tiny": {
        **{"vocab_size": 740, "hidden_size": 128, "intermediate_size": 480},
        **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    },
    "100m": {
        **{"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048},
        **{"num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12},
    },
}


def main() -> int:
    """Print the table; 1 where tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile-generate", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = {"model_type": "llama", "max_position_embeddings": 1024, "tie_word_embeddings": True}
    spec = ModelSpec(
        case_dir="x",
        weight_dir="y",
        precision="fp32",
        nominal_parameters=1e6,
        config={**config, **MODELS[args.model], "initializer_range": 0.1},
    )
    engine = EngineSpec(cpu_threads=args.threads)
    case = Case(id="speed", model=spec, engine=engine, source=Path("speed.yaml"))
    model = hf.load(case, current_device(), None)
    made = np.random.default_rng(0)
    ids = made.integers(1, cast("int", MODELS[args.model]["vocab_size"]), (1, WIDTH))
    length = WIDTH + args.tokens
    marked: dict[str, list[float]] = {}
    ways: dict[str, Callable[[], Any]] = {}
    for name in ("eager", "inductor"):
        decoder = decode.Decoder(model, name)

        def measured(name: str = name, decoder: decode.Decoder = decoder) -> Any:
            found = decoder.generate(ids, args.tokens, length)
            between = found.first_s + sum(found.steps_s)
            marked.setdefault(name, []).append(between / found.whole_s)
            return found.tokens

        def bare(decoder: decode.Decoder = decoder) -> Any:
            mark, decoder._mark = decoder._mark, lambda: 0.0  # type: ignore[method-assign]
            try:
                return decoder.generate(ids, args.tokens, length).tokens
            finally:
                decoder._mark = mark  # type: ignore[method-assign]

        ways |= {f"perfline {name}": measured, f"bare {name}": bare}

    def generate(compiled: bool) -> Any:
        model.activate("eager")
        library: Any = transformers
        settings = library.GenerationConfig(
            max_new_tokens=args.tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=not compiled,
        )
        if compiled:
            every = library.generation.CompileConfig(mode="default", fullgraph=False)
            every._compile_all_devices = True
            settings.compile_config = every
        module = cast("Any", model.module)
        module.generation_config = settings
        batch = torch.from_numpy(ids).to(model.device.torch)
        with torch.inference_mode():
            given = module.generate(
                batch, attention_mask=torch.ones_like(batch), generation_config=settings
            )
        model.device.synchronize()
        return given[:, WIDTH:].cpu().numpy()

    ways["generate"] = lambda: generate(False)
    if args.compile_generate:
        ways["generate compiled"] = lambda: generate(True)
    times: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, Any] = {}
    for turn in range(args.rounds + 1):  # the first one compiles
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            start, start_cpu = time.perf_counter(), time.process_time()
            tokens[name] = ways[name]()
            if turn:
                times[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
        if not turn:
            for kept in marked.values():
                kept.clear()
    counts = model.engine("inductor").compile_counts()
    print(f"{args.model}, {torch.get_num_threads()} threads, {args.tokens} tokens behind {WIDTH}")
    for name, each in times.items():
        own = [args.tokens / seconds for seconds in each]
        ratio = statistics.median(b / a for a, b in zip(each, times["generate"], strict=True))
        print(f"{name:18} {statistics.median(own):8.1f} tok/s  {ratio:.3f} x generate")
    for name, shares in marked.items():
        pairs = zip(cpu[f"bare {name}"], cpu[f"perfline {name}"], strict=True)
        cost = statistics.median(bare_s / own_s for bare_s, own_s in pairs)
        share = statistics.median(shares)
        print(f"{name}: bare / measured {cost:.4f}; between the marks {share:.5f} of all")
    print(f"graphs {counts.graphs}, graph breaks {counts.graph_breaks}")
    apart = [name for name in tokens if (tokens[name] != tokens["generate"]).any()]
    print(f"tokens: {'of ' + ', '.join(apart) + ' differ' if apart else 'all the same'}")
    return int(bool(apart))


if __name__ == "__main__":
    sys.exit(main())
