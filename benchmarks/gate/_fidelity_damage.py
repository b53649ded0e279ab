"""How is the embedded model damaged for ``damages.py``? Weights, code, prompts and files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from perfline.engines.hf import Model
from perfline.engines.prefix_forward import PrefixForward
from perfline.engines.torch_engine import TorchEngine
from perfline.tasks import prompts

Damage = Callable[[ExitStack, Model], None]  # undone as the stack closes
LETTERS_MOVED = str.maketrans("ABCD", "BCDA")


def weights(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Damage:
    """Change every parameter, and give all of them back."""

    def damage(stack: ExitStack, model: Model) -> None:
        for name, parameter in model.module.named_parameters():
            before = parameter.data.clone()
            parameter.data.copy_(change(name, parameter.data))
            stack.callback(parameter.data.copy_, before)

    return damage


def scaled(part: str, factor: float) -> Damage:
    return weights(lambda name, weight: weight * factor if part in name else weight)


def noise(name: str, weight: torch.Tensor) -> torch.Tensor:
    made = torch.Generator().manual_seed(len(name))
    return weight + 0.02 * weight.std() * torch.randn(weight.shape, generator=made)


def without_a_head(name: str, weight: torch.Tensor) -> torch.Tensor:
    changed = weight.clone()
    if name.endswith("layers.1.self_attn.o_proj.weight"):
        changed[:, :32] = 0  # what the first head gives
    return changed


def attribute(owner: Any, name: str, value: Any) -> Damage:
    return lambda stack, _: stack.enter_context(patch.object(owner, name, value)) and None


def attention_scale(stack: ExitStack, model: Model) -> None:
    for layer in model.module.model.layers:  # type: ignore[union-attr]
        attention: Any = layer.self_attn
        stack.enter_context(patch.object(attention, "scaling", attention.scaling * 1.03))


def rope(factor: float) -> Damage:
    def damage(stack: ExitStack, model: Model) -> None:
        frequencies: Any = model.module.model.rotary_emb.inv_freq  # type: ignore[union-attr]
        before = frequencies.clone()
        frequencies.mul_(factor)
        stack.callback(frequencies.copy_, before)

    return damage


def attention_mask(hide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Damage:
    """Hide more from the eager model's plain attention: a kernel that masks wrongly."""
    original = torch.nn.functional.scaled_dot_product_attention

    def masked(query: Any, key: Any, value: Any, attn_mask: Any = None, **rest: Any) -> Any:
        if attn_mask is None and query.shape[2] > 1:
            rows, columns = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
            attn_mask = (columns <= rows) & ~hide(rows, columns)
            rest["is_causal"] = False
        return original(query, key, value, attn_mask=attn_mask, **rest)

    return attribute(torch.nn.functional, "scaled_dot_product_attention", masked)


def shifted_suffix(stack: ExitStack, _: Model) -> None:
    """Positions behind a prefix that begin one too late."""
    original = torch.arange

    def arange(*given: Any, **rest: Any) -> torch.Tensor:
        if len(given) == 2 and given[0] > 0:
            return original(given[0] + 1, given[1] + 1, **rest)
        return original(*given, **rest)

    run = PrefixForward._run

    def shifted(*given: Any, **rest: Any) -> Any:
        with patch.object(torch, "arange", arange):
            return run(*given, **rest)

    stack.enter_context(patch.object(PrefixForward, "_run", shifted))


def compiled_off(stack: ExitStack, _: Model) -> None:
    forward = TorchEngine.forward

    def off(engine: TorchEngine, batch: torch.Tensor, head: Any) -> torch.Tensor:
        logits = forward(engine, batch, head)
        return logits * 1.001 if engine.name == "inductor" else logits

    stack.enter_context(patch.object(TorchEngine, "forward", off))


def broken_in_every_layer(stack: ExitStack, model: Model) -> None:
    """A graph break, as a print or a branch on data makes one."""
    layers: Any = model.module.model.layers  # type: ignore[union-attr]
    kind: Any = type(layers[0].mlp)
    forward = kind.forward

    def breaking(self: Any, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        given: torch.Tensor = forward(self, x)
        return given

    stack.enter_context(patch.object(kind, "forward", breaking))


def compile_disabled(stack: ExitStack, model: Model) -> None:
    """What the variable does in a process that is started with it: it is read at the import."""
    stack.enter_context(patch.dict(os.environ, TORCH_COMPILE_DISABLE="1"))
    stack.enter_context(patch.object(torch._dynamo.config, "disable", True))
    model.forget_engines()
    stack.callback(model.forget_engines)


def swapped_letters(stack: ExitStack, _: Model) -> None:
    read = TorchEngine.read

    def swapped(engine: TorchEngine, logits: torch.Tensor) -> Any:
        letters, largest, best, text = read(engine, logits)
        return letters[-1:] + letters[:-1], largest, best, text.translate(LETTERS_MOVED)

    stack.enter_context(patch.object(TorchEngine, "read", swapped))


def dropped_shot(stack: ExitStack, _: Model) -> None:
    render = prompts.render_prompt
    changed = lambda subject, question, shots: render(subject, question, shots - 1)  # noqa: E731
    stack.enter_context(patch.object(prompts, "render_prompt", changed))


def config(**settings: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        found = json.loads((model / "config.json").read_text())
        if "rope_theta" in settings:
            place = found.get("rope_parameters") or found
            place["rope_theta"] = settings["rope_theta"]
        else:
            found |= settings
        (model / "config.json").write_text(json.dumps(found))

    return damage


def tensors(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / "model.safetensors"
        changed = {name: change(name, each).contiguous() for name, each in load_file(path).items()}
        save_file(changed, path, metadata={"format": "pt"})

    return damage


def int8(name: str, weight: torch.Tensor) -> torch.Tensor:
    if weight.ndim < 2:
        return weight
    step = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 127
    return (weight / step).round() * step


def unpermuted(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The interleaved order of rotary pairs that a conversion forgets to undo."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = weight.view(-1, 2, 16, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)


LAST = "layers.3.mlp"
OF_MODEL: dict[str, Damage] = {
    "last layer's MLP x 1.02": scaled(f"{LAST}.down_proj", 1.02),
    "last layer's MLP x 1.10": scaled(f"{LAST}.down_proj", 1.10),
    "weights rounded to bf16": weights(lambda _, weight: weight.bfloat16().float()),
    "attention scale x 1.03": attention_scale,
    "2 % noise on every weight": weights(noise),
    "RoPE frequencies x 0.97": rope(0.97),
    "RoPE frequencies x 1.001": rope(1.001),
    "one attention head zeroed": weights(without_a_head),
    "mask wrong at one position": attention_mask(lambda row, key: (row == 90) & (key == 88)),
    "sliding window of 64, not asked for": attention_mask(lambda row, key: key < row - 64),
    "positions off by one behind a prefix": shifted_suffix,
    "compiled logits x 1.001": compiled_off,
    "letters swapped as they are read": swapped_letters,
}
OF_COMPILATION: dict[str, Damage] = {
    "a graph break in every layer": broken_in_every_layer,
    "TORCH_COMPILE_DISABLE=1": compile_disabled,
}
OF_PROMPTS: dict[str, Damage] = {"a dropped shot": dropped_shot}
OF_FILES: dict[str, Callable[[Path], None]] = {
    "file: epsilon 1e-5 for 1e-6": config(rms_norm_eps=1e-5),
    "file: rope_theta 11000 for 10000": config(rope_theta=11000.0),
    "file: int8 round trip": tensors(int8),
    "file: rotary pairs not re-ordered": tensors(unpermuted),
}


SHORT = (torch.bfloat16, torch.float16)


def fp8(weight: torch.Tensor) -> torch.Tensor:
    """There and back, scaled to the largest number that fp8 (e4m3) has."""
    wide = weight.float()
    step = wide.abs().amax().clamp(min=1e-9) / 448
    short = (wide / step).clamp(-448, 448).to(torch.float8_e4m3fn)
    return (short.float() * step).to(weight.dtype)


def given_by(part: str, change: Callable[[Any, Any, Any], Any]) -> Damage:
    """Change what modules give whose name ends so, in 16 bits alone: fp32 stays as it is."""

    def hook(module: Any, taken: Any, given: Any) -> Any:
        return change(module, taken, given) if given.dtype in SHORT else given

    def damage(stack: ExitStack, model: Model) -> None:
        for name, module in model.module.named_modules():
            if name.endswith(part):
                stack.callback(module.register_forward_hook(hook).remove)

    return damage


def output(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return given_by(part, lambda _, __, given: change(given))


def used(part: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Damage:
    """Linear maps whose weights are changed as they are used, in 16 bits alone."""
    return given_by(
        part,
        lambda module, taken, _: torch.nn.functional.linear(
            taken[0], change("", module.weight.float()).to(module.weight.dtype), module.bias
        ),
    )


def used_fp8(part: str) -> Damage:
    return used(part, lambda _, weight: fp8(weight))


def short_rope(stack: ExitStack, model: Model) -> None:
    """Rotary angles computed in the case's dtype."""
    rotary: Any = model.module.model.rotary_emb  # type: ignore[union-attr]
    right = type(rotary).forward

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        if x.dtype not in SHORT:
            return right(self, x, position_ids)
        half = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
        angles = torch.cat((half, half), dim=-1)
        return angles.cos(), angles.sin()

    stack.enter_context(patch.object(type(rotary), "forward", forward))


def short_norm(stack: ExitStack, model: Model) -> None:
    """RMS norms computed in the case's dtype."""
    norm: Any = model.module.model.norm
    right = type(norm).forward

    def forward(self: Any, x: torch.Tensor) -> Any:
        if x.dtype not in SHORT:
            return right(self, x)
        size = x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon
        return self.weight * (x * torch.rsqrt(size))

    stack.enter_context(patch.object(type(norm), "forward", forward))


def short_softmax(stack: ExitStack, model: Model) -> None:
    """Scores and softmax of the attention in the case's dtype."""
    right = torch.nn.functional.scaled_dot_product_attention

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **rest: Any) -> Any:
        if query.dtype not in SHORT or attn_mask is not None or query.shape[2] == 1:
            return right(query, key, value, attn_mask=attn_mask, **rest)
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        scores = query @ key.transpose(2, 3) * rest["scale"]
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, float("-inf")).softmax(-1) @ value

    stack.enter_context(
        patch.object(torch.nn.functional, "scaled_dot_product_attention", attention)
    )


def compiled_logits(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    forward = TorchEngine.forward

    def changed(engine: TorchEngine, batch: torch.Tensor, head: Any) -> torch.Tensor:
        logits = forward(engine, batch, head)
        wrong = engine.name == "inductor" and logits.dtype in SHORT
        return change(logits) if wrong else logits

    return attribute(TorchEngine, "forward", changed)


# Faults of 16 bits alone; those that the docs promise first.
PROMISED: dict[str, Damage] = {
    "RoPE angles in the dtype": short_rope,
    "logits in fp8": output("lm_head", fp8),
    "compiled logits in fp8": compiled_logits(fp8),
    "every matrix in fp8": used_fp8("_proj"),
    "every MLP's output in fp8": output(".mlp", fp8),
}
OF_DTYPE: dict[str, Damage] = {
    **PROMISED,
    "norms in the dtype": short_norm,
    "scores and softmax in the dtype": short_softmax,
    "every matrix in int8, by row": used("_proj", int8),
    "last layer's MLP output in fp8": output("layers.3.mlp", fp8),
    "first layer's MLP output in fp8": output("layers.0.mlp", fp8),
    "last layer's MLP x 1.02": output("layers.3.mlp", lambda given: given * 1.02),
    "last layer's MLP x 1.10": output("layers.3.mlp", lambda given: given * 1.10),
    "logits x 1.01": output("lm_head", lambda given: given * 1.01),
    "logits x 1.05": output("lm_head", lambda given: given * 1.05),
    "compiled logits x 1.01": compiled_logits(lambda given: given * 1.01),
}


def drawn_fp8(seed: int, model: Model) -> dict[str, Damage]:
    """Ten linear maps of the model whose weights are used in fp8, in 16 bits alone."""
    maps = [name for name, _ in model.module.named_modules() if name.endswith("_proj")]
    names = np.random.default_rng(seed).choice(maps, size=10, replace=False)
    return {f"{name.removeprefix('model.')} in fp8": used_fp8(str(name)) for name in names}


def drawn(seed: int, model: Model) -> dict[str, Damage]:
    """Ten matrices of the model, each scaled by 1 to 10 % up or down."""
    rng = np.random.default_rng(seed)
    matrices = [name for name, weight in model.module.named_parameters() if weight.ndim == 2]
    found = {}
    for name in rng.choice(matrices, size=10, replace=False):
        factor = 1 + float(rng.choice((-1, 1)) * rng.uniform(0.01, 0.10))
        found[f"{name} x {factor:.3f}"] = scaled(str(name), factor)
    return found
