"""How is a Hugging Face causal LM loaded?

One model is loaded once and serves two engines: ``eager`` runs it as it is, ``inductor`` runs it
with its decoder layers (or the whole stack) under ``torch.compile``. Nothing is executed from model
files: safetensors only, no remote code.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from perfline.cases import data
from perfline.cases.case import ROUNDING_FRACTION, Case, Precision
from perfline.distributed.replica import Replica
from perfline.engines import tensor_parallel, upstream
from perfline.engines.device import Device
from perfline.engines.engine import EngineName
from perfline.engines.torch_engine import (
    PROOF_TAIL,
    TorchEngine,
    apart,
    out_of_memory,
    proof_ids,
)
from perfline.errors import CaseError, EngineError, NoSharedPrefixes, PerflineError
from perfline.tasks import prompts

DTYPES: dict[Precision, Any] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "checkpoint": "auto",  # config.json's own, which the quantizer may change
}


@dataclass
class Model:
    """A loaded model; ``engine()`` gives the two ways of running it. ``close()`` frees it.

    Attributes:
        letters: tokens that answer A, B ...; None under ``--dummy-weights`` (no tokenizer), and
            where no task is answered by letters.
        without_letters: by task, why its letters are scored as continuations.
        positions: the longest prompt that the model takes, in tokens.
        load_s: seconds from disk (or random initialisation) to the device.
        load_peak_gib: peak device memory of the load; None where the device does not count it.
        replica: the ranks that hold the model between them; None where this process holds it.
        cache_shapes: ``upstream.cache_shapes``.
        unshared: why there are none, and no prefixes are shared; empty where there are.
        quantization: how its weights are quantised, such as ``gptq, 4 bits``; empty where not.
    """

    case: Case
    device: Device
    module: nn.Module
    tokenizer: Any | None
    letters: tuple[int, ...] | None
    positions: int
    vocabulary: int
    load_s: float
    load_peak_gib: float | None
    without_letters: Mapping[str, str] = field(default_factory=dict)
    replica: Replica | None = None
    cache_shapes: list[tuple[int, int, int]] = field(default_factory=list)
    unshared: str = ""
    quantization: str = ""
    _engines: dict[EngineName, TorchEngine] = field(default_factory=dict)
    _active: EngineName = "eager"
    _settings: ExitStack = field(default_factory=ExitStack)

    @property
    def attention(self) -> str:
        """The attention that runs: the case's, or what the model's class has in its place."""
        return upstream.attention_of(cast("Any", self.module).config.get_text_config())

    @property
    def encode(self) -> prompts.Encode:
        """The case's batch tokeniser."""
        return prompts.hf_encode(self.tokenizer, self.case.model.bos)

    def engine(self, name: EngineName) -> TorchEngine:
        """The engine of that name; made at first use, compiled at its first forward."""
        if name not in self._engines:
            self._engines[name] = TorchEngine(self, name)
        return self._engines[name]

    def activate(self, name: EngineName) -> None:
        """Make ``name``'s forwards the ones that the modules run; free when they already are."""
        if name == self._active:
            return
        for module in self.engine(self._active).compiled_forwards:
            del module.forward
        for module, forward in self.engine(name).compiled_forwards.items():
            module.forward = forward
        self._active = name

    def forget_engines(self) -> None:
        """Drop both engines, and what was compiled: the next ones begin anew."""
        self.activate("eager")
        self._engines.clear()
        torch.compiler.reset()

    def close(self) -> None:
        """Free the model's memory: one model is resident at a time."""
        if self.replica is not None:
            self.replica.leave()
        self._settings.close()
        self._engines.clear()
        self.module = nn.Module()
        torch.compiler.reset()
        gc.collect()
        if self.device.kind != "cpu":
            torch.accelerator.empty_cache()


@dataclass(frozen=True)
class Vocabulary:
    """What prompts are made with where no engine of ours runs the model: nothing is loaded."""

    encode: prompts.Encode
    positions: int
    vocabulary: int
    without_letters: Mapping[str, str] = field(default_factory=dict)


def vocabulary(case: Case, device: Device, weights: Path | None) -> Vocabulary:
    """Read the checkpoint's tokenizer and config, or the case's config; EngineError."""
    _set_threads(case, device)
    with _loading(f"case '{case.id}': reading the tokenizer of {weights or 'no checkpoint'}"):
        if weights is None:
            config, tokenizer = _config(case), None
        else:
            config = _config_of(weights)
            tokenizer = _tokenizer(weights)
    text = config.get_text_config()
    return Vocabulary(
        encode=prompts.hf_encode(tokenizer, case.model.bos),
        positions=_positions(text),
        vocabulary=int(text.vocab_size),
    )


def _set_threads(case: Case, device: Device) -> None:
    if case.engine.cpu_threads is not None and device.kind == "cpu":
        torch.set_num_threads(case.engine.cpu_threads)


def load(case: Case, device: Device, weights: Path | None, replica: Replica | None = None) -> Model:
    """Load the case's model onto ``device`` in its own dtype; ``weights=None`` means random ones.

    Where a ``replica`` is given, this process loads its share of every tensor that the model's own
    plan splits. Raises EngineError where transformers cannot load it, DeviceMemory where it does
    not fit, RankError where another rank of the replica fails.
    """
    if replica is not None:
        replica.join(device.kind)
        try:
            with replica.agreeing():
                return _load(case, device, weights, replica)
        except PerflineError:
            replica.end()
            raise
    return _load(case, device, weights, None)


def _load(case: Case, device: Device, weights: Path | None, replica: Replica | None) -> Model:
    _set_threads(case, device)
    upstream.check()
    upstream.separate_instruction_sets()
    torch.compiler.reset()
    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()
    device.reset_peak_memory()
    start = time.perf_counter()
    scheme = ""
    if weights is not None:
        scheme = data.check_quantization(weights, case.model.precision)
    elif case.model.precision == "checkpoint":
        raise CaseError(
            f"{case.source}: model.precision is checkpoint, and --dummy-weights have none; name "
            "another one (--set model.precision=bf16 in perfline compare)"
        )
    if scheme and replica is not None:
        raise CaseError(
            f"{case.source}: its weights are quantised ({scheme}): no ranks hold them between "
            "them; remove parallel.tensor"
        )
    what = f"case '{case.id}': loading {weights or 'random weights'} as {case.model.precision}"
    with _loading(what, device):
        split = tensor_parallel.arguments(replica)
        if weights is None:
            module, tokenizer = _random_model(case, device, split), None
        else:
            if scheme and device.kind != "cpu":  # a quantizer puts its tensors where they stay
                split = {"device_map": {"": device.torch}}
            module, tokenizer = _checkpoint(case, weights, split), _tokenizer(weights)
        if not split and not scheme:
            module = module.to(device.torch)
        module.eval().requires_grad_(False)
        device.synchronize()
    load_s = time.perf_counter() - start
    if scheme and upstream.expanded(module):
        scheme = f"{scheme}, expanded to {str(module.dtype).removeprefix('torch.')} at the load"
        warnings.warn(f"{weights}: the weights are {scheme}: they run as such", stacklevel=2)
    if weights is not None:
        _check_finite(case, weights, module)
    config = module.config.get_text_config()
    if replica is not None:
        tensor_parallel.check_split(case, module, replica.size)
    letters: tuple[int, ...] | None = None
    without: Mapping[str, str] = {}
    if tokenizer is not None:
        letters, without = prompts.case_letters(case, prompts.hf_encode(tokenizer, case.model.bos))
    model = Model(
        case=case,
        device=device,
        module=module,
        tokenizer=tokenizer,
        letters=letters,
        without_letters=without,
        positions=_positions(config),
        vocabulary=int(config.vocab_size),
        load_s=load_s,
        load_peak_gib=device.peak_memory_gib(),
        replica=replica,
        quantization=scheme,
    )
    _prove(model)
    model._settings.enter_context(upstream.fail_at_the_recompile_limit())
    return model


def _checkpoint(case: Case, weights: Path, split: dict[str, Any]) -> Any:
    """The checkpoint's model, every tensor of it from the file: nothing is initialised instead."""
    auto: Any = transformers.AutoModelForCausalLM
    config = _config_of(weights)
    language = _language(str(weights / "config.json"), config)
    if language is not config:
        split = {**split, "config": language, "key_mapping": upstream.LANGUAGE_KEYS}
    attention = _attention(case, language)
    quiet = upstream.untold_tensors() if language is not config else nullcontext()  # towers
    with quiet:
        module, found = auto.from_pretrained(
            weights,
            dtype=DTYPES[case.model.precision],
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            # Told below, by name; packed weights have shapes of their own.
            ignore_mismatched_sizes=case.model.precision != "checkpoint",
            **split,
        )
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(map(_named, found[problem]))
        if names:
            others = data.left_aside(weights)
            unread = f" ({', '.join(others[:3])} beside them: the index is of others)"
            raise EngineError(
                f"{weights}: {len(names)} tensors of the model are {problem.partition('_')[0]} in "
                f"the checkpoint, such as {names[0]}; they would be random: get the weights again"
                + (unread if others else "")
            )
    _check_left_out(weights, module, sorted(map(str, found["unexpected_keys"])))
    used = upstream.attention_of(module.config)
    if used != attention:
        raise EngineError(
            f"{weights / 'config.json'}: sets the attention to '{used}', the case asks for "
            f"'{attention}'; remove attn_implementation from it"
        )
    return module


_EXACT: dict[Precision, tuple[str, ...]] = {
    "fp32": ("F32", "F16", "BF16"),
    "fp16": ("F16",),
    "bf16": ("BF16",),
}


def _stored_as(weights: Path) -> str:
    """The dtype that most numbers of the checkpoint have, by safetensors' name."""
    dtypes = data.read_checkpoint(weights).dtypes
    return max(dtypes, key=lambda name: dtypes[name])


def _check_finite(case: Case, weights: Path, module: nn.Module) -> None:
    """Refuse weights that are no numbers: one such row gives wrong answers to some prompts only."""
    stored, exact = _stored_as(weights), _EXACT.get(case.model.precision)
    rounded = exact is not None and stored not in exact
    for name, parameter in module.named_parameters():
        held = tensor_parallel.local(parameter)
        if type(held.data) is not torch.Tensor:  # a quantizer's own, with few operators
            continue
        if not held.is_floating_point() or held.itemsize < 2 or not held.numel():
            continue
        if all(math.isfinite(end) for end in torch.stack(held.aminmax()).tolist()):
            continue
        count = int((~torch.isfinite(held)).sum())
        cause = "they are damaged, get the weights again"
        if rounded and case.model.precision == "fp16":
            cause = f"stored as {stored}, they may be beyond its range: set model.precision to bf16"
        raise EngineError(
            f"{weights}: {count} numbers of {name} are NaN or infinite as "
            f"{case.model.precision}; {cause}"
        )
    if rounded:
        warnings.warn(
            f"{weights.name}: most weights are stored as {stored}, and rounded to "
            f"{case.model.precision}",
            stacklevel=2,
        )


def _check_left_out(weights: Path, module: nn.Module, names: Sequence[str]) -> None:
    """Refuse a file that holds more of the model than the model takes: it is another model.

    What the class itself ignores is not in ``names``. Other towers of a multimodal checkpoint,
    which have no module of their name here, are a notice.
    """
    modules = {name for name, _ in module.named_modules()}
    left_out = [name for name in names if not name.endswith("rotary_emb.inv_freq")]  # computed
    ours = [name for name in left_out if _tower(name) in modules]
    if ours:
        raise EngineError(
            f"{weights}: {len(ours)} tensors of the file are not taken by the model, such as "
            f"{', '.join(ours[:3])}: config.json says another model than the file holds (fewer "
            "layers, or weights that are quantised and would be read without their scales)"
        )
    if left_out:
        warnings.warn(
            f"{weights.name}: {len(left_out)} tensors of other towers are left out, such as "
            f"{left_out[0]}",
            stacklevel=2,
        )


def _tower(name: str) -> str:
    """The part of the model that a tensor is of: ``model.layers``, ``lm_head``, ``visual``."""
    parts = name.split(".")[:-1]
    return ".".join(parts[:2] if parts[:1] == ["model"] else parts[:1])


def _tokenizer(weights: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        weights, trust_remote_code=False, local_files_only=True
    )


def _named(tensor: str | tuple[Any, ...]) -> str:
    """A tensor's name; of a mismatched one its shapes, too."""
    if isinstance(tensor, str):
        return tensor
    name, stored, built = tensor
    return f"{name} ({list(stored)} stored, {list(built)} by config.json)"


def _config_of(weights: Path) -> Any:
    auto: Any = transformers.AutoConfig
    return auto.from_pretrained(weights, trust_remote_code=False, local_files_only=True)


def attention_for(case: Case, weights: Path) -> str:
    """The attention that the checkpoint would run with, unloaded; EngineError."""
    with _loading(f"case '{case.id}': reading {weights / 'config.json'}"):
        language = _language(str(weights / "config.json"), _config_of(weights))
        return _attention(case, language)


def _language(where: str, config: Any) -> Any:
    """The config of the decoder-only LM that is loaded: of several parts, the language's.

    EngineError for an encoder: its answer after a prompt is that to another question.
    """
    if (found := upstream.not_decoder_only(config)) is None:
        return upstream.language_part(config)
    key, value = found
    kind = f"{config.model_type} is no decoder-only LM, and perfline runs no other"
    if key == "is_encoder_decoder":
        raise EngineError(
            f"{where}: '{key}' is {json.dumps(value)}: this {kind}; choose a checkpoint without "
            "an encoder"
        )
    raise EngineError(
        f"{where}: '{key}' is {json.dumps(value)}, so a token attends to those after it: this "
        f"{kind}; change the key if the checkpoint was trained as a decoder, or choose another"
    )


def _attention(case: Case, config: Any) -> str:
    """The attention that the case asks for, or what the model's class has in its place."""
    attention = upstream.best_attention(config, case.model.attention)
    if attention != case.model.attention:
        warnings.warn(
            f"transformers has no {case.model.attention} for {config.model_type}: its "
            f"{attention} attention runs",
            stacklevel=2,
        )
    # transformers takes the kernel from either of the two packages.
    if attention == "flash_attention_2" and not any(map(find_spec, ("flash_attn", "kernels"))):
        raise EngineError(
            f"{case.source}: model.attention is flash_attention_2, and flash-attn is not here: "
            "install it, or set sdpa"
        )
    return attention


def _config(case: Case) -> Any:
    if case.model.config is None:
        raise CaseError(
            f"{case.source}: key 'model.config' is missing; --dummy-weights builds from it"
        )
    settings: dict[str, Any] = dict(case.model.config)
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)


def _random_model(case: Case, device: Device, split: dict[str, Any]) -> Any:
    """Build on the device, in the target dtype: 8e9 parameters never pass through host fp32."""
    config = _language(f"{case.source}: model.config", _config(case))
    auto: Any = transformers.AutoModelForCausalLM
    made: dict[str, Any] = {
        "dtype": DTYPES[case.model.precision],
        "attn_implementation": _attention(case, config),
        "trust_remote_code": False,
    }
    if split:
        with torch.device("meta"):
            kind: Any = type(auto.from_config(config, **made))
        module = tensor_parallel.empty(
            kind, config, made["dtype"], made["attn_implementation"], split
        )
    else:
        with torch.device(device.torch):
            module = auto.from_config(config, **made)
    tensor_parallel.fill(module, getattr(config, "initializer_range", 0.02))
    return module


@contextmanager
def _loading(what: str, device: Device | None = None) -> Iterator[None]:
    """Turn what goes wrong while loading into one line."""
    try:
        yield
    except PerflineError:
        raise
    except Exception as error:  # a broken file may raise anything, from Rust code too
        if device is not None and upstream.is_full(error):
            raise out_of_memory(device, what, error) from error
        lines = (str(error).strip() or type(error).__name__).splitlines()
        first = " ".join(map(str.strip, lines[: 2 if lines[0].endswith(":") else 1]))
        if "trust_remote_code" in str(error):
            first = (
                "config.json or tokenizer_config.json asks for code of the checkpoint's own "
                "(auto_map), which is never run, and transformers has none in its place; update "
                "transformers, or run the model by an engine of your own"
            )
        raise EngineError(f"{what} failed: {first}") from error


def _positions(config: Any) -> int:
    """The longest prompt that a model takes; no limit where it learns no positions."""
    for key in ("max_position_embeddings", "max_seq_len", "n_positions"):
        if isinstance(longest := getattr(config, key, None), int):
            return longest
    return sys.maxsize


def _prove(model: Model) -> None:
    """Refuse a model that this engine does not run as its own forward does; see what it caches."""
    engine, allowed = model.engine("eager"), ROUNDING_FRACTION[model.case.model.precision]
    with engine.running("a forward of a few tokens at the load"):
        for ids in proof_ids(model.vocabulary):
            batch = torch.from_numpy(ids)[None].to(model.device.torch)
            own = engine.untouched(batch, PROOF_TAIL)
            found = [engine.tail(batch, PROOF_TAIL, head) for head in ("all", "last")]
            found.append(torch.cat([own[:-1], engine.forward(batch, "last")[0]]))
            off = apart(torch.stack(found), own)
            if off > allowed:
                raise EngineError(
                    f"case '{model.case.id}': logits of {type(model.module).__name__} are off by "
                    f"{off:.2g} of the largest from those of its own forward (allowed "
                    f"{allowed:g}); run it by an engine of your own"
                )
        try:
            upstream.check_prefixes()
            model.cache_shapes = upstream.cache_shapes(model.module, batch)
        except NoSharedPrefixes as why:  # said where they are asked for
            model.unshared = str(why)
