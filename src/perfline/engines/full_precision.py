"""What does a case's model compute in fp32, by each way that perfline runs it, and by detours?

``ModelLogits`` gives logits: of an engine's plain forward, of its shared prefixes, and of the
eager forward by *variations* that change the order of the arithmetic and nothing else (another
attention kernel, another batch). ``measure.fidelity`` compares them. The logits in the
model's own dtype are there, too, and those of an fp32 model that rounds to it between its modules.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from perfline.engines.device import GIB
from perfline.engines.engine import EngineName
from perfline.engines.hf import Model
from perfline.engines.shared_prefix import SharedPrefixRunner
from perfline.engines.tensor_parallel import local
from perfline.engines.torch_engine import memory_in_words
from perfline.engines.upstream import (
    MASKED_ATTENTIONS,
    attending,
    attention_of,
    check_prefixes,
    decoder,
    first_layers,
)
from perfline.errors import NoFidelity
from perfline.tasks.answers import Answers
from perfline.tasks.prompts import Prompt

Floats = npt.NDArray[np.float32]
_HEADROOM = 1.1  # of the memory that the weights take: keys, values and logits come on top


@contextmanager
def own_precision(model: Model) -> Iterator[ModelLogits]:
    """The model in its own dtype; of the layers that ``fidelity.layers`` asks for."""
    with _layers_asked(model):
        yield ModelLogits(model)


@contextmanager
def _layers_asked(model: Model) -> Iterator[None]:
    """Let the model run the first ``fidelity.layers`` alone, where the case asks for that."""
    if (count := model.case.fidelity.layers) is None:
        yield
        return
    model.forget_engines()  # they know of all layers
    try:
        with first_layers(model.module, count):
            yield
    finally:
        model.forget_engines()


@contextmanager
def full_precision(model: Model) -> Iterator[ModelLogits]:
    """Hold ``model`` in fp32, TF32 off; its own dtype comes back, bit by bit.

    Every fp16 and bf16 number is an fp32 number, so nothing is loaded twice. What a model keeps in
    fp32 anyway (rotary frequencies, say) is not touched. An attention that may know 16 bits only
    gives way to ``sdpa``. Of the layers that ``fidelity.layers`` asks for; the others stay as they
    are. Ranks that hold the model between them do this together. NoFidelity where fp32 does not
    fit, on any of them.
    """
    if model.quantization:
        raise NoFidelity(
            f"the weights are quantised ({model.quantization}): there are none in fp32"
        )
    with _layers_asked(model):
        yield from _in_fp32(model)


def _in_fp32(model: Model) -> Iterator[ModelLogits]:
    module = model.module
    short = _short(module)
    own = [tensor.dtype for tensor in short]
    together = model.replica.agreeing if model.replica is not None else nullcontext
    with together():
        _check_fits(model, _more_gib(short))
    config = cast("Any", module).config.get_text_config()
    only_short = attention_of(config) not in MASKED_ATTENTIONS  # flash attention, say
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:  # memory may run out in the midst of it
        with together(), memory_in_words(model.device, "the model in fp32"):
            _cast(model, short, [torch.float32] * len(short))
        with attending(config, "sdpa") if only_short else nullcontext():
            yield ModelLogits(model, own[0] if own else None)
    finally:
        torch.set_float32_matmul_precision(before)
        _cast(model, short, own)


def _check_fits(model: Model, more_gib: float) -> None:
    """NoFidelity where so much more memory is not free, with the number of layers that would do."""
    free_gib = model.device.free_memory_gib()
    if free_gib is None or more_gib * _HEADROOM <= free_gib:
        return
    layers = decoder(model.module)[1]
    over = (more_gib - free_gib / _HEADROOM) / (_more_gib(_short(layers)) or 1.0)
    fit = math.floor(len(layers) * (1 - over))
    few = f"; `fidelity: {{layers: {fit}}}` in {model.case.source} runs the first {fit} alone"
    raise NoFidelity(
        f"the model in fp32 takes {more_gib:.1f} GiB more than in its own dtype, and "
        f"{free_gib:.1f} GiB are free on {model.device.name}{few if fit > 0 else ''}"
    )


def _short(module: torch.nn.Module) -> list[torch.Tensor]:
    """The tensors of a module that 16 bits hold."""
    every = itertools.chain(module.parameters(), module.buffers())
    return [tensor for tensor in every if tensor.dtype in (torch.float16, torch.bfloat16)]


def _more_gib(short: Sequence[torch.Tensor]) -> float:
    """What they take more in fp32."""
    return sum(local(tensor).numel() * (4 - tensor.itemsize) for tensor in short) / GIB


def _cast(model: Model, tensors: list[torch.Tensor], dtypes: Sequence[torch.dtype]) -> None:
    """Give tensors those dtypes; what was compiled for the others is forgotten.

    In place; but of a share of a tensor ``data`` is no more than a view: there another one takes
    its place, in the model and in ``tensors``.
    """
    if not tensors:
        return
    model.forget_engines()
    for number, (tensor, dtype) in enumerate(zip(tensors, dtypes, strict=True)):
        if local(tensor) is tensor:
            tensor.data = tensor.data.to(dtype)
            continue
        tensors[number] = other = torch.nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
        for module in model.module.modules():
            for name, held in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if held is tensor:
                    setattr(module, name, other)


class ModelLogits:
    """One model's logits, float32 on the host: ``measure.fidelity.Logits``."""

    def __init__(self, model: Model, rounds_to: torch.dtype | None = None) -> None:
        """``model`` stays in the dtype that it has for as long as this is used.

        ``rounds_to`` is what the variation ``rounded`` rounds to; None where there is none.
        """
        self._model = model
        self._rounds_to = rounds_to

    @property
    def letters(self) -> tuple[int, ...]:
        """The tokens that answer A, B, C, D; none under ``--dummy-weights``."""
        return self._model.letters or ()

    def plain(
        self,
        name: EngineName,
        prompt: Prompt,
        positions: Sequence[int],
        variation: str | None = None,
    ) -> tuple[Floats, list[float]]:
        """Logits of the prompt run by itself, (positions, vocabulary), and a number a layer.

        The number is of the hidden state that a decoder layer gives at the last token: the sum of
        its channels by signs that are always the same. Where two runs' numbers part first, there
        the models part. Of the eager engine alone: a compiled one has no such places. NoFidelity
        where the model has no such variation.
        """
        engine = self._model.engine(name)
        batch = engine.prepare(prompt)
        if variation == "batch":
            batch = batch.repeat(2, 1)
        layers: list[float] = []

        def note(_: Any, __: Any, output: Any) -> None:
            state = (output[0] if isinstance(output, tuple) else output)[0, -1]
            numbers = state.double().cpu().numpy()
            signs = np.random.default_rng(len(layers)).choice((-1.0, 1.0), size=len(numbers))
            layers.append(float(numbers @ signs))

        looked_at = engine.layers if name == "eager" else ()
        hooks = [layer.register_forward_hook(note) for layer in looked_at]
        try:
            with self._attending(other=variation == "attention"), self._rounding(variation):
                logits = engine.forward(batch, "all")[0]
        finally:
            for hook in hooks:
                hook.remove()
        return cast("Floats", logits[list(positions)].float().cpu().numpy()), layers

    def shared(self, name: EngineName, prompts: Sequence[Prompt]) -> Floats:
        """Logits at each prompt's last token, prefixes shared: (prompts, vocabulary).

        NoSharedPrefixes where the model has no such path.
        """
        check_prefixes()
        engine = self._model.engine(name)
        runner = SharedPrefixRunner(engine)
        if engine.ranks > 1:  # each plans by itself, and alike, whatever is free
            runner.limits = replace(runner.limits, kv_bytes=GIB // 4)
        plan = runner.plan(prompts)
        runner.warm_up(plan)
        seen: deque[torch.Tensor] = deque()
        found: dict[str, Floats] = {}

        def landed(answers: Answers) -> None:  # batches land in the order of their forwards
            rows = seen.popleft().float().cpu().numpy()
            found.update(zip(answers.ids, rows, strict=True))

        runner.forward.watch = seen.append
        runner.run(prompts, plan, on_batch=landed)
        return np.stack([found[prompt.id] for prompt in prompts])

    def not_compiled(self, name: EngineName) -> str:
        """Why an engine that compiles ran eagerly; empty where it did not."""
        return self._model.engine(name).not_compiled()

    @contextmanager
    def _rounding(self, variation: str | None) -> Iterator[None]:
        """Round what every module takes and gives, while it computes in fp32 as before."""
        if variation != "rounded":
            yield
            return
        if self._rounds_to is None:
            raise NoFidelity("the model's own dtype is fp32: there is nothing to round to")
        dtype = self._rounds_to

        def rounded(given: Any) -> Any:
            if isinstance(given, torch.Tensor) and given.is_floating_point():
                return given.to(dtype).to(given.dtype)
            return tuple(map(rounded, given)) if type(given) is tuple else given

        with ExitStack() as hooks:
            for module in self._model.module.modules():
                before = module.register_forward_pre_hook(lambda _, given: rounded(given))
                after = module.register_forward_hook(lambda _, __, given: rounded(given))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield

    def _attending(self, other: bool) -> Any:
        if not other:
            return nullcontext()
        config = self._model.engine("eager").config
        if attention_of(config) != "sdpa":
            raise NoFidelity(f"no other attention is known for '{attention_of(config)}'")
        return attending(config, "eager")
