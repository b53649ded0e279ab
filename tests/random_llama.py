"""A random Llama of 3 layers, small enough for a unit test."""

from __future__ import annotations

from pathlib import Path

from perfline.cases.case import Case, EngineSpec, ModelSpec

CONFIG = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def traced_only(monkeypatch):
    """Dynamo decides how many graphs there are; what inductor makes of them costs minutes."""
    import torch

    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic, mode: compiled(f, dynamic=dynamic, backend="eager")
    )


def case(precision="fp32", config=CONFIG, **engine):
    model = ModelSpec(
        case_dir="x", weight_dir="y", precision=precision, nominal_parameters=1e6, config=config
    )
    return Case(
        id="random", model=model, engine=EngineSpec(cpu_threads=1, **engine), source=Path("x.yaml")
    )
