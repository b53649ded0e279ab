"""What does measuring decode cost, and is the loop that is measured as fast as transformers' own?

    python benchmarks/decode_speed.py [--model tiny 100m] [--rounds N] [--tokens N] [--threads N]
        [--compile-generate] [--out benchmarks/results/decode_speed-cpu-2-cores.json]

In one process, in turns, on random Llamas: perfline's eager and compiled loop (``engines.decode``),
the bare forwards of each (the same calls, no clock between them), and ``model.generate`` with its
own static cache, greedy and never ending early; compiled by itself only where asked for, which
takes minutes on a CPU. A round runs each once, every other round in the reverse order. A ratio is
formed within a round, so that a machine that gets slower meanwhile weighs on both; of all rounds it
is the Hodges-Lehmann estimate with the exact signed-rank interval (``compare.sequential``), as in
`perfline compare`. All ways give the same tokens, or it says so.

``whole/core``: tokens a second of the measured loop over those of the bare forwards. On a CPU it is
of CPU seconds, on which other processes hardly weigh; else of the clock. At least 0.99 is asked
for: `ok` where the whole interval is above it, `exceeded` where all of it is below, else `unsure`.
Beside it, since a busy machine makes that interval wide: what the marks take when nothing runs
between them, as a share of the loop.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers

from perfline.cases.case import Case, EngineSpec, ModelSpec
from perfline.compare.sequential import hodges_lehmann, interval
from perfline.engines import decode, environment, hf
from perfline.engines.device import cpu_contention, current_device
from perfline.measure.throughput import waited_fraction

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 128  # tokens of the prompt
LEAST = 0.99  # of whole/core
CONFIDENCE = 0.99  # of every interval
MARKS = 10_000  # are timed by themselves
BUSY = 0.1  # share of the CPU that other processes took, above which a run is no evidence
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
Seconds = dict[str, dict[str, list[float]]]  # {way: {"wall_s" or "cpu_s": one of each round}}


def main() -> int:
    """Print the tables, write the file; 1 where tokens differ or measuring surely costs more."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--tokens", type=int, help="of each generation; default: 128, 100m: 32")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile-generate", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    # All ways on the same cores: these differ in speed, and which one is woken on is chance.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    about = environment.collect(ROOT)
    before, load = cpu_contention(), os.getloadavg()
    found = {}
    for name in args.model:
        tokens = args.tokens or (32 if name == "100m" else 128)
        found[name] = measured(name, tokens, args.rounds, args.threads, args.compile_generate)
        print(table(name, found[name]), flush=True)
    waited = waited_fraction(before, cpu_contention())
    busy = waited is not None and waited > BUSY
    if waited is not None and busy:
        print(f"busy: other processes took {100 * waited:.0f} % of the CPU; run it again alone")
    whole = {
        "schema": 1,
        "date": environment.today(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": about.machine,
        "device": about.device,
        "context": dict(about.context),
        "load_average": {"before": list(load), "after": list(os.getloadavg())},
        "cpu_waited_fraction": waited,
        "busy": busy,
        "models": found,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return int(any(failed(each) for each in found.values()))


def measured(
    name: str, tokens: int, rounds: int, threads: int, compile_generate: bool
) -> dict[str, Any]:
    """Run every way in turns; what is written of one model."""
    torch.manual_seed(0)
    config = {"model_type": "llama", "max_position_embeddings": 1024, "tie_word_embeddings": True}
    spec = ModelSpec(
        case_dir="x",
        weight_dir="y",
        precision="fp32",
        nominal_parameters=1e6,
        config={**config, **MODELS[name], "initializer_range": 0.1},
    )
    case = Case(
        id="speed",
        model=spec,
        engine=EngineSpec(cpu_threads=threads),
        source=Path("speed.yaml"),
    )
    model = hf.load(case, current_device(), None)
    vocabulary = cast("int", MODELS[name]["vocab_size"])
    ids = np.random.default_rng(0).integers(1, vocabulary, (1, WIDTH))
    between: dict[str, list[float]] = {}
    ways = ways_of(model, ids, tokens, between)
    if compile_generate:
        ways["generate compiled"] = lambda: generate(model, ids, tokens, compiled=True)
    given = {way: run() for way, run in ways.items()}  # compiles
    for run in ways.values():  # and warms up
        run()
    for shares in between.values():
        shares.clear()
    counts = model.engine("inductor").compile_counts()
    seconds = in_turns(ways, rounds)
    later = model.engine("inductor").compile_counts() - counts
    marks_s = seconds_of_a_mark(decode.Decoder(model, "inductor")) * (tokens + 1)
    clock = "cpu_s" if model.device.kind == "cpu" else "wall_s"
    parameters = sum(each.numel() for each in cast("Any", model.module).parameters())
    model.close()
    return {
        "parameters": parameters,
        "prompt_tokens": WIDTH,
        "tokens": tokens,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "clock": clock,
        "graphs": counts.graphs,
        "graph_breaks": (counts + later).graph_breaks,
        "recompiles": later.graphs,
        "tokens_differ": [way for way in ways if (given[way] != given["generate"]).any()],
        "whole_over_core": {
            engine: with_word(
                ratio(seconds[f"bare {engine}"][clock], seconds[f"perfline {engine}"][clock])
            )
            for engine in ("eager", "inductor")
        },
        "over_generate": {
            way: {
                against: ratio(seconds[against]["wall_s"], seconds[way]["wall_s"])
                for against in ("generate", "generate compiled")
                if against in seconds
            }
            for way in ("perfline eager", "perfline inductor")
        },
        "marks_share": {
            engine: marks_s / statistics.median(seconds[f"perfline {engine}"][clock])
            for engine in ("eager", "inductor")
        },
        "between_marks": {name: statistics.median(shares) for name, shares in between.items()},
        "seconds": seconds,
    }


def ways_of(
    model: hf.Model, ids: Any, tokens: int, between: dict[str, list[float]]
) -> dict[str, Callable[[], Any]]:
    """What is run in turns; each returns its tokens, (1, tokens).

    ``between`` takes, by engine, the share of each measured loop that lies between its marks.
    """
    length = WIDTH + tokens
    ways: dict[str, Callable[[], Any]] = {}
    for name in ("eager", "inductor"):
        decoder = decode.Decoder(model, name)

        def whole(name: str = name, decoder: decode.Decoder = decoder) -> Any:
            found = decoder.generate(ids, tokens, length)
            share = (found.first_s + sum(found.steps_s)) / found.whole_s
            between.setdefault(name, []).append(share)
            return found.tokens

        def core(decoder: decode.Decoder = decoder) -> Any:
            mark, decoder._mark = decoder._mark, lambda: 0.0  # type: ignore[method-assign]
            try:
                return decoder.generate(ids, tokens, length).tokens
            finally:
                decoder._mark = mark  # type: ignore[method-assign]

        ways |= {f"perfline {name}": whole, f"bare {name}": core}
    ways["generate"] = lambda: generate(model, ids, tokens, compiled=False)
    return ways


def seconds_of_a_mark(decoder: decode.Decoder) -> float:
    """CPU seconds of this process; marks of a device are queued, and waited for in the end."""
    start = time.process_time()
    for _ in range(MARKS):
        decoder._mark()
    decoder._engine.synchronize()
    return (time.process_time() - start) / MARKS


def generate(model: hf.Model, ids: Any, tokens: int, compiled: bool) -> Any:
    """What transformers' own loop gives over its own static cache."""
    model.activate("eager")
    library: Any = transformers
    settings = library.GenerationConfig(
        max_new_tokens=tokens,
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


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> Seconds:
    """Run each way once a round, every other round backwards."""
    seconds: Seconds = {way: {"wall_s": [], "cpu_s": []} for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            wall, cpu = time.perf_counter(), time.process_time()
            ways[way]()
            seconds[way]["wall_s"].append(time.perf_counter() - wall)
            seconds[way]["cpu_s"].append(time.process_time() - cpu)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float | None]:
    """Of seconds, round by round: estimate and interval; no interval of too few rounds."""
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    low, high = interval(logs, CONFIDENCE) or (None, None)
    return {
        "estimate": math.exp(hodges_lehmann(logs)),
        "low": None if low is None else math.exp(low),
        "high": None if high is None else math.exp(high),
        "confidence": CONFIDENCE,
    }


def with_word(found: dict[str, float | None]) -> dict[str, Any]:
    """A whole/core ratio, and whether measuring costs at most what it may."""
    low, high = found["low"], found["high"]
    word = "unsure"
    if low is not None and low >= LEAST:
        word = "ok"
    elif high is not None and high < LEAST:
        word = "exceeded"
    return {**found, "word": word}


def failed(found: Mapping[str, Any]) -> bool:
    """Whether tokens differ, graphs were compiled while timed, or measuring costs too much."""
    exceeded = any(each["word"] == "exceeded" for each in found["whole_over_core"].values())
    return bool(found["tokens_differ"] or found["recompiles"] or exceeded)


def table(name: str, found: Mapping[str, Any]) -> str:
    """What is printed of one model."""
    lines = [
        f"{name}: {found['parameters'] / 1e6:.1f} M parameters, {found['threads']} threads, "
        f"{found['tokens']} tokens behind {found['prompt_tokens']}, {found['rounds']} rounds"
    ]
    for way, each in found["seconds"].items():
        speed = found["tokens"] / statistics.median(each["wall_s"])
        lines.append(f"  {way:20} {speed:8.1f} tok/s, the prompt's time included")
    for engine, each in found["whole_over_core"].items():
        share = found["between_marks"][engine]
        lines.append(f"  whole/core {engine:10} {shown(each)}  {each['word']} (>= {LEAST})")
        lines.append(f"  between the marks {engine}: {share:.5f} of the loop")
        lines.append(f"  the marks alone, {engine}: {found['marks_share'][engine]:.6f} of the loop")
    for way, by in found["over_generate"].items():
        lines += [f"  {way} / {against}: {shown(each)}" for against, each in by.items()]
    lines.append(
        f"  graphs {found['graphs']}, graph breaks {found['graph_breaks']}, recompiles in the "
        f"rounds {found['recompiles']}"
    )
    apart = ", ".join(found["tokens_differ"])
    return "\n".join(
        [*lines, f"  tokens: {f'those of {apart} differ' if apart else 'all the same'}"]
    )


def shown(found: Mapping[str, Any]) -> str:
    """A ratio with its interval."""
    if found["low"] is None:
        return f"{found['estimate']:.4f} (too few rounds for an interval)"
    return f"{found['estimate']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


if __name__ == "__main__":
    sys.exit(main())
