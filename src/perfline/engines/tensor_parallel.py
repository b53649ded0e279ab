"""How is one model split over the ranks of a replica?

By transformers, which splits at the load: each rank reads its share of every tensor, by the plan
that the model's architecture brings (``base_model_tp_plan``; Shoeybi et al. 2019, arXiv 1909.08053,
section 3). Random weights depend on a parameter's name alone, so that they are the same however
they are split.
"""

from __future__ import annotations

import importlib.util
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import torch

from perfline.engines import upstream
from perfline.errors import CaseError, EngineError

if TYPE_CHECKING:
    from perfline.cases.case import Case
    from perfline.distributed.replica import Replica


def arguments(replica: Replica | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told; nothing where the model is not split.

    EngineError where what it needs for that is not installed.
    """
    if replica is None:
        return {}
    if importlib.util.find_spec("accelerate") is None:
        raise EngineError(
            "parallel.tensor needs accelerate, with which transformers splits a model: pip install "
            "'perfline[parallel]'"
        )
    return upstream.split_arguments(replica)


def check_split(case: Case, module: Any, size: int) -> None:
    """CaseError, EngineError where the model cannot be split over ``size`` ranks, or was not."""
    config = module.config.get_text_config()
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, key, None)
        if heads is not None and heads % size:
            raise CaseError(
                f"{case.source}: key 'parallel.tensor' is {size}; the model has {heads} {key}, "
                "expected a divisor of that"
            )
    if not any(_placed(parameter) for parameter in module.parameters()):
        raise EngineError(
            f"case '{case.id}': transformers did not split {type(module).__name__} over {size} "
            "ranks; update transformers (5.23 does), or choose an architecture that has a "
            "tensor-parallel plan"
        )


def empty(kind: Any, config: Any, dtype: object, attention: str, split: dict[str, Any]) -> Any:
    """A split model of class ``kind`` without a checkpoint: transformers fills in every tensor."""
    with upstream.untold_tensors(), warnings.catch_warnings():
        # What torch says of random numbers in split tensors: they are drawn anew in ``fill``.
        warnings.filterwarnings("ignore", message="DTensor random operators")
        return kind.from_pretrained(
            None,
            config=config,
            state_dict={},
            dtype=dtype,
            attn_implementation=attention,
            **split,
        )


def fill(module: torch.nn.Module, deviation: float) -> None:
    """Draw every matrix anew, from a generator seeded by its name: N(0, deviation^2)."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2:
                continue  # scales and biases are as the architecture starts them
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            whole.normal_(0.0, deviation, generator=generator)
            placed = _placed(parameter)
            if placed is None:
                parameter.copy_(whole)
            else:
                mesh, placements = placed
                from torch.distributed.tensor import distribute_tensor

                own = distribute_tensor(whole, mesh, placements, src_data_rank=None)
                share: Any = parameter
                share.to_local().copy_(own.to_local())


def local(tensor: Any) -> torch.Tensor:
    """This rank's share of a tensor; all of it where it is not split."""
    share: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return share


def _placed(parameter: torch.nn.Parameter) -> tuple[Any, Any] | None:
    """Over which mesh and how a parameter is split; None where it is whole."""
    placed: Any = parameter
    return (placed.device_mesh, placed.placements) if hasattr(placed, "device_mesh") else None
