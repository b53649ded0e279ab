"""Which of transformers' causal LMs does perfline run rightly, and by which of its four ways?

Every causal LM of the installed transformers, as a tiny random checkpoint, by the eager and
the compiled engine, each prompt by itself and by shared prefixes, against the model's own forward::

    python benchmarks/models.py docs/models.md                # all of them, an hour on two cores
    python benchmarks/models.py docs/models.md --kinds llama opt --engines inductor

A way is right where the letters' logits are within 1e-4 of the largest and every answer is the
same. What is no decoder-only LM must be refused. A kind that takes longer than ``--seconds`` for
one of its ways is stopped, and says so. What each way gave is kept in ``results/models.json``, kind
by kind: the page shows what was ever run with the versions of torch and transformers that are
installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

VOCABULARY = 320
SMALL = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 96),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("head_dim", "linear_key_head_dim", "linear_value_head_dim", "rotary_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("linear_num_key_heads", "mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 32),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), 24),
    "qk_rope_head_dim": 8,
    "max_position_embeddings": 512,
    "num_heads": 4,
    "depth": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,  # larger than is usual: what is wrong shows
}
HYBRID = ("full_attention_interval", "attn_layer_period", "layer_group_size")
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
INDEXER = {f"indexer_{key}": n for key, n in (("n_heads", 2), ("kv_heads", 1), ("head_dim", 16))}
INDEXER |= {"indexer_budget": 16, "indexer_compress_ratio": 4, "hc_lowrank": 16}
HYBRID_LAYERS = ["linear_attention", "hybrid"] * 2
NO_LAYER_INPUT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
GEMMA3N: dict[str, Any] = {"num_hidden_layers": 4, "num_kv_shared_layers": 0}
GEMMA3N |= {"activation_sparsity_pattern": [0.5, *[0.0] * 3], "hidden_size_per_layer_input": 16}
# What a kind needs beside that, or instead.
MORE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2}
    | {"linear_num_heads": 2, "linear_head_dim": 16},  # without its kernels, a second a forward
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 8, "zero_expert_num": 2},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "mamba_dt_rank": 4}
    | {"num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1},
    "dots1": {"head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1}
    | {"num_experts_per_tok": 2, "num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1, "expand": 2},
    "qwen2_moe": {"num_experts_per_tok": 2},
    "opt": {"num_attention_heads": 4},
    "bloom": {"hidden_size": 64},
    "gpt_oss": {"num_experts_per_tok": 2},
    "recurrent_gemma": {"lru_width": 64, "num_hidden_layers": 3},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "dory": {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "mlp"] * 3}
    | {"n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2},
    "dots3_note": {"vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 64}},
    "gemma3n_text": GEMMA3N,
    "gemma3n": {"text_config": GEMMA3N},
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text"} | NO_LAYER_INPUT},
    "qwen4_exp_text": INDEXER,
    "qwen4_exp": {"text_config": INDEXER},
    "xlstm": {"hidden_size": 256, "embedding_dim": 256, "chunk_size": 16},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": HYBRID_LAYERS},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
RESULTS = Path(__file__).parent / "results" / "models.json"
NOT_TRIED, REFUSED = "no tiny config", "no decoder-only LM"  # stand in the reasons
WAYS = ("eager", "eager shared", "inductor", "inductor shared")


def tiny(kind: str) -> dict[str, Any]:
    """The config of a tiny model of that kind, as data."""
    import transformers

    def small(config: Any, more: dict[str, Any]) -> dict[str, Any]:
        keys = config.to_dict()
        given: dict[str, Any] = {key: SMALL[key] for key in SMALL if key in keys}
        if "qk_rope_head_dim" in keys:
            given.pop("head_dim", None)
            given["num_key_value_heads"] = SMALL["num_attention_heads"]
        if any(key.startswith("linear_") or key in HYBRID for key in keys):
            given["num_hidden_layers"] = 4  # the last of them with full attention
        for key, part in keys.items():
            if key.endswith("_config") and isinstance(part, dict) and hasattr(config, key):
                inner = getattr(config, key)
                if hasattr(inner, "to_dict"):
                    given[key] = small(inner, {})
        both = {key: given[key] | more[key] for key in given if isinstance(more.get(key), dict)}
        return given | more | both

    more = MORE.get(kind, {})
    try:
        made = transformers.AutoConfig.for_model(kind)
    except Exception:  # its own defaults do not fit each other
        made = transformers.AutoConfig.for_model(kind, **more)
    return {"model_type": kind, **small(made, more)}


def prompts() -> list[Any]:
    """Two families that share their beginnings, of unequal length."""
    import numpy as np

    from perfline.tasks.prompts import Prompt

    rng = np.random.default_rng(0)

    def run(n: int) -> Any:
        return rng.integers(5, VOCABULARY, size=n, dtype=np.int64)

    head, rows = run(20), []
    for _ in range(2):
        subject = np.concatenate([head, run(24)])
        rows += [np.concatenate([subject, run(3 + 4 * i)]) for i in range(5)]
    return [Prompt(f"s/{i}", "s", row, 0, "A") for i, row in enumerate(rows)]


def measure(kind: str, engines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (way, what it gave), or ("all", why the kind is refused); ``right`` is right."""
    import numpy as np
    import torch

    from perfline.cases.case import Case, EngineSpec, ModelSpec
    from perfline.engines import hf
    from perfline.engines.device import current_device
    from perfline.engines.engine import run_pass
    from perfline.engines.prefix_plan import Limits
    from perfline.engines.shared_prefix import SharedPrefixRunner
    from perfline.errors import PerflineError

    try:
        config = tiny(kind)
    except Exception as error:  # of the sweep, not of perfline
        yield "all", f"{NOT_TRIED}: {_line(error)}"
        return
    spec = ModelSpec(
        case_dir="x", weight_dir="y", precision="fp32", nominal_parameters=1e6, config=config
    )
    case = Case(id=kind, model=spec, engine=EngineSpec(cpu_threads=1), source=Path("models"))
    try:
        model = hf.load(case, current_device(), None)
    except PerflineError as error:
        built = "loading random weights" not in str(error)  # by transformers, of the sweep's config
        yield "all", _line(error) if built else f"{NOT_TRIED}: {_line(error.__cause__ or error)}"
        return
    asked = prompts()
    with torch.inference_mode():
        own = [model.module(input_ids=torch.from_numpy(p.ids)[None]).logits[0, -1] for p in asked]
    letters = np.stack([row[:4].float().numpy() for row in own])
    best = [int(row.argmax()) for row in own]
    for name in engines:
        for shared in (False, True):
            try:
                engine = model.engine(name)
                if shared:
                    runner = SharedPrefixRunner(engine, Limits(256, forward_cost_tokens=1))
                    plan = runner.plan(asked)
                    runner.warm_up(plan)
                    found = runner.run(asked, plan).answers
                else:
                    found = run_pass(engine, asked, "last").answers
            except PerflineError as error:
                said = _line(error)
            else:
                off = float(np.abs(found.letter_logits - letters).max() / np.abs(letters).max())
                same = found.argmax.tolist() == best
                said = "right" if off < 1e-4 and same else f"wrong: off by {off:.2g} of the largest"
            yield f"{name} shared" if shared else name, said
    model.close()


def _line(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...")


def _worker(pipe: Any, engines: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    while (kind := pipe.recv()) is not None:
        try:
            for found in measure(kind, engines):
                pipe.send(found)
        except Exception as error:  # a traceback that a user would see
            pipe.send(("all", f"TRACEBACK {type(error).__name__}: {_line(error)}"))
        pipe.send(None)


def sweep(
    kinds: Sequence[str], engines: Sequence[str], seconds: float
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every kind with what its ways gave; a process that hangs or dies is begun anew."""
    spawn = multiprocessing.get_context("spawn")
    worker: Any = None
    for kind in kinds:
        if worker is None:
            ours, theirs = spawn.Pipe()
            worker = spawn.Process(target=_worker, args=(theirs, engines), daemon=True)
            worker.start()
            theirs.close()
        ours.send(kind)
        found, why = dict[str, str](), ""
        try:
            while ours.poll(seconds):
                if (got := ours.recv()) is None:
                    break
                found[got[0]] = got[1]
            else:
                worker.kill()
                why, worker = f"over {seconds:.0f} s", None
        except EOFError:
            why, worker = "the process died", None
        if why:
            asked = (way for way in WAYS if way.partition(" ")[0] in engines)
            found = dict.fromkeys(asked, why) | found
        yield kind, found
    if worker is not None:
        ours.send(None)
        worker.join()


def versions() -> str:
    """What the sweep depends on."""
    return " and ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "torch"))


def kept(found: dict[str, dict[str, str]], kind: str, said: dict[str, str]) -> None:
    """Take in what one kind gave: a reason for all of its ways takes the place of theirs."""
    before = {} if "all" in said else {w: s for w, s in found.get(kind, {}).items() if w != "all"}
    found[kind] = before | said


def table(found: dict[str, dict[str, str]]) -> str:
    """The page: how many, each kind by each way, and the reasons."""
    none = {kind: said["all"] for kind, said in found.items() if "all" in said}
    untried = {kind for kind, why in none.items() if NOT_TRIED in why}
    refused = {kind for kind, why in none.items() if REFUSED in why}
    tried = {kind: said for kind, said in found.items() if kind not in untried | refused}
    run = Counter(way for said in tried.values() for way in said)
    right = Counter(
        way for ways_ in found.values() for way, said in ways_.items() if said == "right"
    )
    lines = [
        "# Models",
        "",
        f"Made with {versions()} on a CPU ({platform.machine()}), fp32, by",
        "",
        "```console",
        "$ python benchmarks/models.py docs/models.md",
        "```",
        "",
        "A tiny random checkpoint of each kind runs by each way, against the model's own forward. "
        "Right: letters within 1e-4 of the largest logit, and the same answers. A kind that shares "
        "no prefixes is run by itself, question by question, with a notice.",
        "",
        f"Right of {len(tried)} kinds, of those that were run: "
        + ", ".join(f"{right[way]} of {run[way] + run['all']} by {way}" for way in WAYS)
        + ". An empty cell was not run: the script takes some kinds, or ways, by name "
        "(`models.py --help`). "
        f"Beside them {len(refused)} kinds of causal LM are refused, as they are no decoder-only "
        f"LMs, and {len(untried)} were not tried: transformers builds no tiny model of them.",
        "",
        f"| kind | {' | '.join(WAYS)} | why not |",
        f"| --- | {' | '.join('---' for _ in WAYS)} | --- |",
    ]
    for kind, said in sorted(found.items()):
        cells = [{"right": "yes", "": ""}.get(said.get(way, ""), "no") for way in WAYS]
        if kind in none:
            word = "not tried" if kind in untried else "refused" if kind in refused else "no"
            cells = [word] * len(WAYS)
        why = "; ".join(dict.fromkeys(t for t in said.values() if t != "right"))
        why = textwrap.shorten(why, 240, placeholder=" ...").replace("|", "/").replace("<", "&lt;")
        lines.append(f"| {kind} | {' | '.join(cells)} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Sweep, print a line a kind, write the page."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("page", type=Path, help="the table to write, such as docs/models.md")
    parser.add_argument("--kinds", nargs="+", default=sorted(KINDS))
    parser.add_argument("--engines", nargs="+", default=["eager", "inductor"])
    parser.add_argument("--seconds", type=float, default=90, help="for one way of one kind")
    args = parser.parse_args()
    found: dict[str, dict[str, str]] = {}
    if RESULTS.exists() and (held := json.loads(RESULTS.read_text()))["versions"] == versions():
        found = held["kinds"]
    for kind, said in sweep(args.kinds, args.engines, args.seconds):
        kept(found, kind, said)
        print(kind, json.dumps(said), flush=True)
        held = {"versions": versions(), "kinds": dict(sorted(found.items()))}
        RESULTS.write_text(json.dumps(held, indent=1) + "\n")
        args.page.write_text(table(found))


class _Raw(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    main()
