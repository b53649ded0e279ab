"""How is the embedded model damaged for ``accuracy.py``, and what does it answer then?

Every arm loads the checkpoint anew, is damaged in one known way and answers all questions by the
path that the suite takes (``SharedPrefixRunner``, eager). What is compared with what stands in
``Arm.against``: the undamaged model, or the same setting without the damage.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perfline.cases import data
from perfline.cases.case import Case, Precision
from perfline.engines import hf
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.engines.hf import Model
from perfline.engines.shared_prefix import SharedPrefixRunner
from perfline.tasks import prompts
from perfline.tasks.answers import Answers
from perfline.tasks.prompts import Prompt

UNDAMAGED = "undamaged, fp32"
BF16 = "undamaged, bf16"
ROPE_BASES = (9_900, 9_500, 9_000, 8_000, 5_000, 20_000, 500_000)
BITS = (8, 6, 5, 4, 3)
NOISE_PERCENT = (0.5, 1, 2, 4, 8, 16, 32)  # of each matrix' own standard deviation, in one layer
NOISE_PERCENT_ALL = (1, 2, 4, 8, 16, 24, 32)  # ... and in all layers
SEEDS = 12  # of the noise, and of the bf16 models that are the same function
# A limit at which an off-by-one cuts a shot from: (arithmetic), (12 of capitals), (pantry and zoo).
# Prompts of these have 189, 193 and 202 tokens; one more must fit.
LIMITS = (190, 194, 203)
KEPT = 180  # tokens of every prompt, where tokens are cut from the front instead of shots

Change = Callable[[Any], None]  # of a module, in place
Run = Callable[["Lab"], Answers]


@dataclass(frozen=True)
class Arm:
    """One way to answer the questions.

    Attributes:
        family: ``reference``, ``no damage``, ``exchangeable: ...``, ``damage``, ``noise``.
        against: the name of the reference arm that it is compared with; its own for references.
    """

    family: str
    name: str
    run: Run
    against: str = UNDAMAGED


@dataclass
class Lab:
    """The case, its questions and its checkpoint."""

    case: Case
    _located: data.Located = field(init=False)
    _encode: prompts.Encode = field(init=False)
    _subjects: dict[int, tuple[prompts.Subject, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the packaged data."""
        self._located = data.locate(self.case, None)
        self._encode = self.load().encode

    def load(
        self,
        precision: Precision = "fp32",
        rope_base: float | None = None,
        change: Change | None = None,
    ) -> Model:
        """The checkpoint, with another RoPE base in its config.json, or changed in memory."""
        model_spec = replace(self.case.model, precision=precision)
        case = replace(self.case, model=model_spec)
        with tempfile.TemporaryDirectory() as folder:
            weights = self._located.weights
            if rope_base is not None:
                weights = shutil.copytree(weights, Path(folder) / "tiny_hf")
                _set_rope_base(weights / "config.json", rope_base)
            model = hf.load(case, current_device(), weights)
        if change is not None:
            change(model.module)
        return model

    def subjects(self, shots: int = 5) -> tuple[prompts.Subject, ...]:
        """The questions, with the first ``shots`` shots."""
        if shots not in self._subjects:
            self._subjects[shots] = prompts.load_subjects(self._located.mmlu, shots)
        return self._subjects[shots]

    def prompts(
        self, limit: int = 2048, subjects: Sequence[prompts.Subject] | None = None
    ) -> list[Prompt]:
        """The prompts, whole shots dropped where tokens + 1 exceed ``limit``."""
        spec = replace(self.case.mmlu, max_prompt_tokens=limit)
        return prompts.build_prompts(subjects or self.subjects(), self._encode, spec)

    def question_start(self, prompt: Prompt) -> int:
        """Where the test question's own tokens begin."""
        subject = next(s for s in self.subjects() if s.name == prompt.subject)
        question = next(q for q in subject.test if q.id == prompt.id)
        asked = prompts.render_prompt(subject, question, 0).partition("\n\n")[2]
        own = self._encode([asked])[0][1:]  # behind the BOS
        if prompt.ids[-len(own) :].tolist() != own:
            raise SystemExit(f"question {prompt.id}: its tokens are not the end of its prompt")
        return len(prompt.ids) - len(own)


def arms() -> Iterator[Arm]:
    """All arms, references before what is compared with them."""
    yield Arm("reference", UNDAMAGED, _answers)
    yield from _no_damage()
    for base in ROPE_BASES:
        name = f"RoPE base 10,000 -> {base:,}"
        yield Arm("damage", name, partial(_answers, rope_base=base))
    yield Arm("damage", "last shot dropped (4-shot)", _last_shot_dropped)
    yield Arm("damage", "first shot dropped (4-shot)", _first_shot_dropped)
    yield Arm("damage", "bf16 instead of fp32", partial(_answers, precision="bf16"))
    yield Arm("damage", "fp16 instead of fp32", partial(_answers, precision="fp16"))
    for bits in BITS:
        for rows, what in ((True, "per channel"), (False, "per tensor")):
            change = partial(rounded, bits=bits, per_channel=rows)
            yield Arm("damage", f"int{bits} weights, {what}", partial(_answers, change=change))
    yield from _truncated()
    for percent in NOISE_PERCENT:
        change = partial(noisy, percent=percent, seed=0, layer=3)
        yield Arm("damage", f"noise {percent:g} %, last layer", partial(_answers, change=change))
    for percent in NOISE_PERCENT_ALL:
        for seed in range(SEEDS):
            change = partial(noisy, percent=percent, seed=seed)
            name = f"noise {percent:g} %, seed {seed}"
            yield Arm(f"noise {percent:g} %", name, partial(_answers, change=change))


def _no_damage() -> Iterator[Arm]:
    """The same function computed otherwise: every alarm here is a false one."""
    yield Arm("no damage", "loaded and run again", _answers)
    yield Arm("no damage", "one prompt a forward (plain path)", _plain)
    yield Arm("no damage", "forwards of at most 256 tokens", _small_batches)
    yield Arm("no damage", "questions in reverse order", _reversed)
    yield Arm("no damage", "two CPU threads", _two_threads)
    same = partial(_answers, change=partial(rescaled, seed=0))
    yield Arm("no damage", "same function, other weights, fp32", same)
    yield Arm("reference", BF16, partial(_answers, precision="bf16"), BF16)
    plain = partial(_plain, precision="bf16")
    yield Arm("no damage", "bf16, one prompt a forward (plain path)", plain, BF16)
    small = partial(_small_batches, precision="bf16")
    yield Arm("no damage", "bf16, forwards of at most 256 tokens", small, BF16)
    for seed in range(SEEDS):
        change = partial(rescaled, seed=seed, dtype=torch.bfloat16)
        name = f"same function, other weights, bf16, seed {seed}"
        yield Arm("same function in bf16", name, partial(_answers, change=change), BF16)


def _truncated() -> Iterator[Arm]:
    """Prompts that lose a token, or a shot one token too early; both arms have the same limit."""
    for limit in LIMITS:
        whole = f"undamaged, limit {limit} tokens"
        yield Arm("reference", whole, partial(_at_limit, limit=limit), whole)
        name = f"limit {limit}, shots cut one token too early"
        yield Arm("damage", name, partial(_at_limit, limit=limit - 1), whole)
    cut = f"undamaged, the last {KEPT} tokens"
    yield Arm("reference", cut, partial(_last_tokens, kept=KEPT), cut)
    name = f"the last {KEPT} tokens kept, less one"
    yield Arm("damage", name, partial(_last_tokens, kept=KEPT - 1), cut)
    yield Arm("damage", "first token lost (BOS)", partial(_edited, edit=lambda _, p: p.ids[1:]))
    yield Arm("damage", "BOS twice", partial(_edited, edit=_bos_twice))
    yield Arm("damage", "last token of the last shot lost", partial(_edited, edit=shot_cut))
    yield Arm("damage", "last token lost (colon)", partial(_edited, edit=lambda _, p: p.ids[:-1]))


# --- runs -------------------------------------------------------------------------------------


def _answers(lab: Lab, **damage: Any) -> Answers:
    return answer(lab.load(**damage), lab.prompts())


def answer(model: Model, prompts: Sequence[Prompt]) -> Answers:
    """Answers by shared prefixes, as the suite gives them."""
    runner = SharedPrefixRunner(model.engine("eager"))
    return runner.run(prompts, runner.plan(prompts)).answers


def _plain(lab: Lab, precision: Precision = "fp32") -> Answers:
    return run_pass(lab.load(precision).engine("eager"), lab.prompts(), "last").answers


def _small_batches(lab: Lab, precision: Precision = "fp32") -> Answers:
    runner, prompts = SharedPrefixRunner(lab.load(precision).engine("eager")), lab.prompts()
    runner.limits = replace(runner.limits, forward_tokens=256)
    return runner.run(prompts, runner.plan(prompts)).answers


def _reversed(lab: Lab) -> Answers:
    return answer(lab.load(), lab.prompts()[::-1])


def _two_threads(lab: Lab) -> Answers:
    model = lab.load()
    torch.set_num_threads(2)
    try:
        return answer(model, lab.prompts())
    finally:
        torch.set_num_threads(1)


def _last_shot_dropped(lab: Lab) -> Answers:
    return answer(lab.load(), lab.prompts(subjects=lab.subjects(shots=4)))


def _first_shot_dropped(lab: Lab) -> Answers:
    fewer = [replace(subject, dev=subject.dev[1:]) for subject in lab.subjects()]
    return answer(lab.load(), lab.prompts(subjects=fewer))


def _at_limit(lab: Lab, limit: int) -> Answers:
    return answer(lab.load(), lab.prompts(limit))


def _last_tokens(lab: Lab, kept: int) -> Answers:
    """Cut tokens from the front, as a tokenizer with ``truncation_side="left"`` does."""
    return _edited(lab, lambda _, prompt: prompt.ids[-kept:])


def _edited(lab: Lab, edit: Callable[[Lab, Prompt], Any]) -> Answers:
    return answer(lab.load(), [replace(p, ids=edit(lab, p)) for p in lab.prompts()])


def _bos_twice(lab: Lab, prompt: Prompt) -> Any:
    return np.concatenate([prompt.ids[:1], prompt.ids])


def shot_cut(lab: Lab, prompt: Prompt) -> Any:
    """The ids without the token before the test question."""
    return np.delete(prompt.ids, lab.question_start(prompt) - 1)


# --- changes of weights -----------------------------------------------------------------------


def _set_rope_base(path: Path, base: float) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    where = config.get("rope_parameters") or config  # transformers 5.x, 4.x
    where["rope_theta"] = float(base)
    path.write_text(json.dumps(config), encoding="utf-8")


def _matrices(module: Any, layer: int | None = None) -> Iterator[torch.Tensor]:
    """The layers' matrices; embeddings (and the head that is tied to them) stay as they are."""
    for name, parameter in module.named_parameters():
        chosen = layer is None or f"layers.{layer}." in name
        if parameter.ndim == 2 and "embed" not in name and chosen:
            yield parameter


def rounded(module: Any, bits: int, per_channel: bool) -> None:
    """Symmetric integer weights, rounded to nearest and multiplied out again.

    The scale is the largest magnitude of the output channel (row) or of the whole matrix.
    """
    largest = 2 ** (bits - 1) - 1
    for weight in _matrices(module):
        peak = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().max()
        scale = peak.clamp(min=1e-12) / largest  # a row may be all zeros
        weight.copy_((weight / scale).round().clamp(-largest, largest) * scale)


def noisy(module: Any, percent: float, seed: int, layer: int | None = None) -> None:
    """Gaussian noise of ``percent`` of each matrix' own standard deviation; one draw per seed."""
    generator = torch.Generator().manual_seed(seed)
    for weight in _matrices(module, layer):
        noise = torch.randn(weight.shape, generator=generator)
        weight.add_(percent / 100 * weight.std() * noise)


def rescaled(module: Any, seed: int, dtype: torch.dtype | None = None) -> None:
    """The same function in other numbers, then rounded to ``dtype``.

    A linear map may be scaled where the next undoes it: values and the output projection, the up
    and down projections, each norm and the matrices that read it. In exact arithmetic nothing
    changes, so that draws differ by rounding alone, and none is better than another by design.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(n: int) -> torch.Tensor:
        return torch.exp2(2 * torch.rand(n, generator=generator) - 1)

    for layer in module.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        size = attention.head_dim
        kept = attention.v_proj.weight.shape[0]
        groups = attention.o_proj.weight.shape[1] // kept  # query heads that share a value head
        scale = factors(kept)
        attention.v_proj.weight.mul_(scale[:, None])
        repeated = scale.view(-1, 1, size).expand(-1, groups, -1).reshape(-1)
        attention.o_proj.weight.div_(repeated)
        scale = factors(mlp.up_proj.weight.shape[0])
        mlp.up_proj.weight.mul_(scale[:, None])
        mlp.down_proj.weight.div_(scale)
        readers = (attention.q_proj, attention.k_proj, attention.v_proj)
        _rescale_norm(layer.input_layernorm, readers, factors)
        _rescale_norm(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), factors)
    if dtype is not None:
        for parameter in module.parameters():  # not the buffers: RoPE's frequencies stay fp32
            parameter.data = parameter.data.to(dtype)


def _rescale_norm(norm: Any, readers: Sequence[Any], factors: Callable[[int], Any]) -> None:
    scale = factors(norm.weight.shape[0])
    norm.weight.mul_(scale)
    for reader in readers:
        reader.weight.div_(scale)
