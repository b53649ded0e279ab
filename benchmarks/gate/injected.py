"""What is put into a model's forward, so that ``explain.py`` can see whether it is found?

Imported in B's worker (``perfline compare --import injected``, with this directory on PYTHONPATH)
before the model is loaded: the injection that ``PERFLINE_INJECTED`` names is put into transformers'
Llama. ``INJECTIONS`` says where it is, which is what an explanation is held against.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama import modeling_llama as llama

VARIABLE = "PERFLINE_INJECTED"
_LAYER = 2  # of the injections in one layer
_OPERATOR_S = 2e-4  # 4 of them are some 5 % to 10 % of a forward of ``tiny``
_PYTHON_S = 1e-3


@dataclass(frozen=True)
class Injection:
    """Where an injection is.

    Attributes:
        install: puts it in; None where it is a setting of the case (``settings``).
        eager, inductor: (module, operator) as regular expressions that match both whole; None where
            it is not for that engine.
    """

    install: Callable[[], None] | None
    eager: tuple[str, str] | None
    inductor: tuple[str, str] | None
    settings: tuple[tuple[str, str], ...] = ()


@torch.library.custom_op("injected::silu", mutates_args=())
def _slow_silu(x: torch.Tensor) -> torch.Tensor:
    end = time.perf_counter() + _OPERATOR_S
    out = functional.silu(x)
    while time.perf_counter() < end:
        pass
    return out


@_slow_silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _each_layer(change: Callable[[Any], None], only: int | None = None) -> None:
    """Change every decoder layer, or one, when it is made."""
    init = llama.LlamaDecoderLayer.__init__

    def changed(self: Any, config: Any, layer_idx: int) -> None:
        init(self, config, layer_idx)
        if only in (None, layer_idx):
            change(self)

    llama.LlamaDecoderLayer.__init__ = changed  # type: ignore[method-assign]


class _Twice(nn.Module):
    """An MLP that runs twice."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn

    def _once(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._once(x + 1e-9 * self._once(x))


class _Activation(nn.Module):
    """The activation by another function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def _unfused(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def _upcast(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.double(), linear.weight.double()).to(x.dtype)

    return forward


def _copied(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, linear.weight.clone())

    return forward


def _transposed(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Another operator, on a matrix of twice the size."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = torch.cat([linear.weight, linear.weight, linear.weight])
        return torch.matmul(x, weight.T)[..., : len(linear.weight)]

    return forward


def _set(path: str, made: Callable[[Any], Any], only: int | None = None) -> Callable[[], None]:
    """Replace a module of every layer, or of one, or the ``forward`` of it."""

    def change(layer: Any) -> None:
        *above, name = path.split(".")
        holder = layer
        for part in above:
            holder = getattr(holder, part)
        new = made(getattr(holder, name))
        if isinstance(new, nn.Module):
            setattr(holder, name, new)
        else:
            getattr(holder, name).forward = new

    return lambda: _each_layer(change, only)


def _wait(*_: object) -> None:
    end = time.perf_counter() + _PYTHON_S
    while time.perf_counter() < end:
        pass


def _slow_layers() -> None:
    """Python before every layer."""
    _each_layer(lambda layer: layer.register_forward_pre_hook(_wait))


def _slow_head() -> None:
    """Copies of all logits."""
    forward = llama.LlamaForCausalLM.forward

    def copied(self: Any, *args: Any, **named: Any) -> Any:
        found = forward(self, *args, **named)
        for _ in range(8):
            found.logits = found.logits.clone()
        return found

    llama.LlamaForCausalLM.forward = copied  # type: ignore[method-assign]


def _slow_norm() -> None:
    """The last norm of all in double precision, many times."""
    init = llama.LlamaModel.__init__

    def changed(self: Any, config: Any) -> None:
        init(self, config)
        forward = self.norm.forward

        def slow(x: torch.Tensor) -> torch.Tensor:
            for _ in range(12):
                x = x + 1e-12 * torch.tanh(x)
            return forward(x)  # type: ignore[no-any-return]

        self.norm.forward = slow

    llama.LlamaModel.__init__ = changed  # type: ignore[method-assign]


def _math_attention() -> None:
    """The same operator by another kernel."""
    torch.backends.cuda.enable_flash_sdp(False)


_ALL, _ONE = r"layers\.\*", rf"layers\.{_LAYER}"
_MLP = r"mlp(\.(gate|up|down)_proj)?"
INJECTIONS = {
    "another attention": Injection(
        None,
        (rf"{_ALL}\.self_attn", r"scaled_dot_product_attention -> .*"),
        (_ALL, r".*scaled_dot_product.* -> .*"),
        (("model.attention", "eager"),),
    ),
    "another attention kernel": Injection(
        _math_attention,
        (rf"{_ALL}\.self_attn", r"scaled_dot_product_attention( \(.*\))?"),
        None,
    ),
    "MLP twice": Injection(
        _set("mlp", _Twice), (rf"{_ALL}\.{_MLP}", r"linear( .*)?"), (_ALL, r"mm( .*)?")
    ),
    "MLP twice, one layer": Injection(
        _set("mlp", _Twice, _LAYER), (rf"{_ONE}\.{_MLP}", r"linear( .*)?"), (_ONE, r"mm( .*)?")
    ),
    "fusion lost": Injection(
        _set("mlp.act_fn", lambda _: _Activation(_unfused)),
        (rf"{_ALL}\.mlp\.act_fn", r"silu -> .*"),
        None,
    ),
    "upcast": Injection(
        _set("mlp.down_proj", _upcast),
        # The conversion and the product in fp64 cost as much; inductor fuses the first.
        (rf"{_ALL}\.mlp\.down_proj", r"linear( .*)?|nothing -> to"),
        (_ALL, r"mm( .*)?|.*_to_copy.*"),
    ),
    "a copy": Injection(
        _set("mlp.down_proj", _copied), (rf"{_ALL}\.mlp\.down_proj", r"nothing -> clone"), None
    ),
    "copies of the logits": Injection(
        _slow_head, ("", "nothing -> clone"), ("", "nothing -> clone")
    ),
    "another operator": Injection(
        _set("self_attn.q_proj", _transposed),
        (rf"{_ALL}\.self_attn\.q_proj", r"linear -> .*matmul.*"),
        None,
    ),
    "Python, 1 ms a layer": Injection(_slow_layers, (_ALL, "Python"), (_ALL, "Python")),
    "sleep in one operator": Injection(
        _set("mlp.act_fn", lambda _: _Activation(_slow_silu)),
        (rf"{_ALL}\.mlp\.act_fn", r"silu -> injected::silu"),
        (_ALL, r".*silu -> .*injected::silu.*"),
    ),
    "sleep in one operator, one layer": Injection(
        _set("mlp.act_fn", lambda _: _Activation(_slow_silu), _LAYER),
        (rf"{_ONE}\.mlp\.act_fn", r"silu -> injected::silu|nothing -> injected::silu"),
        None,
    ),
    "the last norm": Injection(
        _slow_norm,
        ("norm", r"nothing -> (tanh|add|mul)|add|mul"),
        None,
    ),
}


if os.environ.get(VARIABLE):
    _install = INJECTIONS[os.environ[VARIABLE]].install
    if _install is not None:
        _install()
