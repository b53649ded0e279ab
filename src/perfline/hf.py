"""How is a Hugging Face causal LM loaded, compiled and run?

The only module that imports torch at its top. The decoder stack and the head are called separately
(``model.base_model(...)``, then the output embedding): that is the same from transformers 4.57 to
5.x, and the head can be applied to all positions, as published, or to the last one. One model is
loaded once and serves two engines: ``eager`` runs it as it is, ``inductor`` runs it with its
decoder layers (or the whole stack) under ``torch.compile``. Nothing is executed from model files:
safetensors only, no remote code.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from perfline import mmlu
from perfline.case import Case
from perfline.device import Device
from perfline.engine import CompileCounts, EngineName, Head
from perfline.errors import CaseError, DeviceMemory, EngineError
from perfline.mmlu import Prompt

_COMPILE_ERRORS = (
    torch._dynamo.exc.TorchDynamoException,
    torch._dynamo.exc.FailOnRecompileLimitHit,
)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Model:
    """A loaded model; ``engine()`` gives the two ways of running it. ``close()`` frees it.

    Attributes:
        letters: tokens that answer A, B, C, D; None under ``--dummy-weights`` (no tokenizer).
        positions: the longest prompt that the model takes, in tokens.
        load_s: seconds from disk (or random initialisation) to the device.
        load_peak_gib: peak device memory of the load; None where the device does not count it.
    """

    case: Case
    device: Device
    module: nn.Module
    tokenizer: Any | None
    letters: tuple[int, int, int, int] | None
    positions: int
    vocabulary: int
    load_s: float
    load_peak_gib: float | None
    _engines: dict[EngineName, TorchEngine] = field(default_factory=dict)
    _active: EngineName = "eager"
    _settings: ExitStack = field(default_factory=ExitStack)

    @property
    def encode(self) -> mmlu.Encode:
        """The case's batch tokeniser."""
        return mmlu.hf_encode(self.tokenizer, self.case.model.bos)

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

    def close(self) -> None:
        """Free the model's memory: one model is resident at a time."""
        self._settings.close()
        self._engines.clear()
        self.module = nn.Module()
        torch._dynamo.reset()
        gc.collect()
        if self.device.kind != "cpu":
            torch.accelerator.empty_cache()


class TorchEngine:
    """``engine.Engine`` over one torch model, eager or compiled by inductor."""

    def __init__(self, model: Model, name: EngineName) -> None:
        """Wrap ``model``; compilation itself waits for the first forward."""
        self.name: EngineName = name
        self._model = model
        self._device = model.device
        self._torch_device = model.device.torch
        module = cast("Any", model.module)
        self._stack: nn.Module = module.base_model
        self._head: nn.Module = module.get_output_embeddings()
        self._letters = torch.tensor(model.letters or (0, 1, 2, 3), device=self._torch_device)
        self._letter_of: dict[int, str] = {}
        self._start = _dynamo_counts()
        self._layers = decoder_layers(self._stack)
        spec = model.case.engine
        self.compiled_forwards: dict[nn.Module, Any] = {}
        if name == "inductor":
            targets = [self._stack] if spec.scope == "model" else list(self._layers)
            self.compiled_forwards = {
                target: torch.compile(target.forward, dynamic=spec.dynamic, mode=spec.mode)
                for target in targets
            }

    def prepare(self, prompt: Prompt) -> torch.Tensor:
        """Copy the ids to the device; shape (1, tokens)."""
        return torch.from_numpy(prompt.ids)[None].to(self._torch_device)

    def forward(self, batch: torch.Tensor, head: Head) -> torch.Tensor:
        """Logits of shape (1, tokens, vocabulary), or (1, 1, vocabulary) for ``head="last"``."""
        self._model.activate(self.name)
        with torch.inference_mode(), self._errors(batch.shape[1]):
            hidden = self._stack(input_ids=batch, **self._cache_arguments())[0]
            return cast("torch.Tensor", self._head(hidden if head == "all" else hidden[:, -1:]))

    def synchronize(self) -> None:
        """Wait for the device."""
        self._device.synchronize()

    def read(self, logits: torch.Tensor) -> tuple[list[float], int, str]:
        """Letter logits, arg-max and its letter at the last position."""
        row = logits[0, -1].float()
        best = int(row.argmax())
        return row[self._letters].tolist(), best, self._letter(best)

    def compile_counts(self) -> CompileCounts:
        """What dynamo and inductor did since this engine was made."""
        if self.name == "eager":
            return CompileCounts()
        return _dynamo_counts() - self._start

    def flops(self, tokens: int, head: Head) -> float | None:
        """2 x weights a token for every matmul, and 4 x width for every (query, key) pair.

        Attention counts the pairs of the causal triangle, n(n+1)/2, once for QK^T and once for PV
        (Kaplan et al. 2020, arXiv 2001.08361, table 1, with the triangle instead of the square).
        None for a model with matmuls outside ``nn.Linear`` (a mixture of experts, say).
        """
        matrices = {id(m.weight): m.weight.numel() for m in _linears(self._layers)}
        for name, parameter in self._layers.named_parameters():
            if parameter.ndim >= 2 and id(parameter) not in matrices:
                del name
                return None
        config = cast("Any", self._model.module).config.get_text_config()
        heads = config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        pairs = tokens * (tokens + 1) / 2
        head_rows = tokens if head == "all" else 1
        return float(
            2 * tokens * sum(matrices.values())
            + 4 * width * pairs * len(self._layers)
            + 2 * head_rows * cast("torch.Tensor", self._head.weight).numel()
        )

    def reset_peak_memory(self) -> None:
        """Start a new peak."""
        self._device.reset_peak_memory()

    def peak_memory_gib(self) -> float | None:
        """Peak memory since the reset, GiB."""
        return self._device.peak_memory_gib()

    def _letter(self, token: int) -> str:
        if token not in self._letter_of:
            tokenizer = self._model.tokenizer
            text = tokenizer.decode([token]) if tokenizer is not None else ""
            self._letter_of[token] = mmlu.full_vocab_letter(text)
        return self._letter_of[token]

    def _cache_arguments(self) -> dict[str, Any]:
        if self.name == "inductor" and self._model.case.engine.scope == "model":
            # Traced without a cache, transformers materialises the causal mask and the flash
            # kernel is lost; with an empty one it is not.
            config = cast("Any", self._model.module).config
            return {"use_cache": True, "past_key_values": transformers.DynamicCache(config=config)}
        return {"use_cache": False}

    @contextmanager
    def _errors(self, tokens: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(self._device, f"a forward of {tokens} tokens", error) from error
        except _COMPILE_ERRORS as error:
            first = str(error).strip().splitlines()[0]
            raise EngineError(
                f"case '{self._model.case.id}': torch.compile failed on a prompt of {tokens} "
                f"tokens: {first}; try engine.scope or engine.dynamic in the case's YAML"
            ) from error


def load(case: Case, device: Device, weights: Path | None) -> Model:
    """Load the case's model onto ``device`` in its own dtype; ``weights=None`` means random ones.

    Raises EngineError where transformers cannot load it, DeviceMemory where it does not fit.
    """
    if case.engine.cpu_threads is not None and device.kind == "cpu":
        torch.set_num_threads(case.engine.cpu_threads)
    torch._dynamo.reset()
    # torch's structured trace is for a file of its own: pytest would show all of it with a failure.
    logging.getLogger("torch.__trace").propagate = False
    device.reset_peak_memory()
    start = time.perf_counter()
    with _loading(case, device, weights):
        if weights is None:
            module, tokenizer = _random_model(case, device), None
        else:
            module, tokenizer = _checkpoint(case, weights), _tokenizer(weights)
            module = module.to(device.torch)
        module.eval().requires_grad_(False)
        device.synchronize()
    load_s = time.perf_counter() - start
    config = module.config.get_text_config()
    letters = None
    if tokenizer is not None:
        letters = mmlu.letter_tokens(mmlu.hf_encode(tokenizer, case.model.bos))
    model = Model(
        case=case,
        device=device,
        module=module,
        tokenizer=tokenizer,
        letters=letters,
        positions=int(config.max_position_embeddings),
        vocabulary=int(config.vocab_size),
        load_s=load_s,
        load_peak_gib=device.peak_memory_gib(),
    )
    _check_head(model)
    # At its limit of recompiles dynamo would go on in eager mode without a word.
    model._settings.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
    return model


def decoder_layers(stack: nn.Module) -> nn.ModuleList:
    """The decoder layers: the longest ``nn.ModuleList`` directly in the stack."""
    lists = [child for child in stack.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise EngineError(
            f"{type(stack).__name__} holds no list of decoder layers; expected a decoder-only LM"
        )
    return max(lists, key=len)


def _checkpoint(case: Case, weights: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        weights,
        dtype=DTYPES[case.model.precision],
        attn_implementation=case.model.attention,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )


def _tokenizer(weights: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        weights, trust_remote_code=False, local_files_only=True
    )


def _random_model(case: Case, device: Device) -> Any:
    """Build on the device, in the target dtype: 8e9 parameters never pass through host fp32."""
    if case.model.config is None:
        raise CaseError(
            f"{case.source}: key 'model.config' is missing; --dummy-weights builds from it"
        )
    settings: dict[str, Any] = dict(case.model.config)
    auto: Any = transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    with torch.device(device.torch):
        return auto.from_config(
            config,
            dtype=DTYPES[case.model.precision],
            attn_implementation=case.model.attention,
            trust_remote_code=False,
        )


@contextmanager
def _loading(case: Case, device: Device, weights: Path | None) -> Iterator[None]:
    """Turn what goes wrong while loading into one line."""
    what = f"case '{case.id}': loading {weights or 'random weights'} as {case.model.precision}"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(device, what, error) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if _is_cpu_out_of_memory(error):
            raise _out_of_memory(device, what, error) from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"{what} failed: {first}") from error


def _is_cpu_out_of_memory(error: BaseException) -> bool:
    return "DefaultCPUAllocator" in str(error)


def _out_of_memory(device: Device, what: str, error: BaseException) -> DeviceMemory:
    free, peak = device.free_memory_gib(), device.peak_memory_gib()
    known = [
        f"{value:.1f} GiB {label}"
        for value, label in ((peak, "taken at the peak"), (free, "free now"))
        if value is not None
    ]
    first = str(error).strip().splitlines()[0]
    return DeviceMemory(
        f"{what}: out of memory on {device.name} "
        f"({', '.join(known) or 'amounts unknown'}): {first} "
        "To fit, lower model.precision, mmlu.max_prompt_tokens or throughput.head, "
        "or free the device (`perfline doctor` shows who holds it)"
    )


def _check_head(model: Model) -> None:
    """Refuse a model whose logits are more than its head times the last hidden state.

    Gemma caps them, Cohere and Granite scale them: their letter logits would not be the model's.
    """
    config = cast("Any", model.module).config.get_text_config()
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise EngineError(
                f"case '{model.case.id}': the model's config sets {key}, so its logits are more "
                "than a matrix product of the last hidden state; perfline does not run it yet"
            )


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (m for m in module.modules() if isinstance(m, nn.Linear))


def _dynamo_counts() -> CompileCounts:
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return CompileCounts(
        graphs=counters["stats"]["unique_graphs"],
        graph_breaks=sum(counters["graph_break"].values()),
        cache_hits=inductor["fxgraph_cache_hit"],
        cache_misses=inductor["fxgraph_cache_miss"],
    )
