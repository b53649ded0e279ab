"""How does attention run on grouped heads and a mask without repeating the keys?

transformers' ``sdpa`` gives each query head a copy of its group's keys and values wherever there is
a mask, as CUDA's fused kernels take no mask with grouped heads. A CPU's does, and there the copies
cost more than they save.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

GROUPED = "perfline_grouped_sdpa"


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' ``sdpa``: (rows, heads, tokens, size) -> (rows, tokens, heads, size)."""
    if attention_mask is None or kwargs.get("position_bias") is not None:
        known: Any = AttentionInterface
        rest = {"dropout": dropout, "scaling": scaling, **kwargs}
        out, _ = known()["sdpa"](module, query, key, value, attention_mask, **rest)
        return out, None
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_sdpa)
