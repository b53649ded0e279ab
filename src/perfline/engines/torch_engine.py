"""How does a loaded model run, as it is or compiled?

The model's own ``forward`` runs, so that scales, caps, biases and a quantizer's hooks come as they
are. The head is applied to all positions, as published, or only the needed ones reach the output
embedding (``logits``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import nn

from perfline.engines.device import Device
from perfline.engines.engine import CompileCounts, EngineName, Fingerprint, Head, Profile
from perfline.engines.fingerprint import of_run
from perfline.engines.profile import Profiler
from perfline.engines.upstream import (
    cache_argument,
    compile_errors,
    decoder,
    dynamo_counts,
    inductor_cache,
    is_full,
    named_kernels,
    why_not_compiled,
)
from perfline.errors import DeviceMemory, EngineError, NoSharedPrefixes, PerflineError
from perfline.tasks.prompts import Prompt

if TYPE_CHECKING:
    from perfline.engines.hf import Model


PROOF_PREFIX = 5  # tokens that all of ``proof_ids`` begin with
PROOF_TAIL = 3  # of their last positions, at which logits are looked at
LAST = (slice(None), slice(-1, None))  # for ``logits``: every row's last position
_AT_ONCE = 256  # positions whose logits are float32 at a time
_WINDOWS = ("sliding_attention", "chunked_attention")


class TorchEngine:
    """``engine.MeasuredEngine`` over one torch model, eager or compiled by inductor."""

    def __init__(self, model: Model, name: EngineName) -> None:
        """Wrap ``model``; compilation itself waits for the first forward."""
        self.name: EngineName = name
        self._model = model
        self.device = model.device
        self._torch_device = model.device.torch
        self.module: Any = model.module
        self.head: nn.Module | None = cast("Any", model.module).get_output_embeddings()
        self._letters = torch.tensor(model.letters or (0, 1, 2, 3), device=self._torch_device)
        self._texts: dict[int, str] = {}
        self._start = self._forgotten = dynamo_counts()
        self._profiler: Profiler | None = None
        self.stack, self.layers = decoder(model.module)
        spec = model.case.engine
        self.compiled_forwards: dict[nn.Module, Any] = {}
        if name == "inductor":
            targets = [self.stack] if spec.scope == "model" else list(self.layers)
            self.compiled_forwards = {
                target: torch.compile(target.forward, dynamic=spec.dynamic, mode=spec.mode)
                for target in targets
            }

    def begin(self, prompts: Sequence[Prompt], head: Head) -> None:
        """Have the other ranks of the replica, if any, begin the same pass."""
        self.tell(do="pass", head=head, **told(prompts))

    def tell(self, **said: object) -> None:
        """Tell the other ranks that hold this model what comes next."""
        if self._model.replica is not None:
            self._model.replica.tell(engine=self.name, **said)

    @property
    def ranks(self) -> int:
        """Over how many ranks the model is split."""
        return 1 if self._model.replica is None else self._model.replica.size

    def prepare(self, prompt: Prompt) -> torch.Tensor:
        """Copy the ids to the device; shape (1, tokens)."""
        return torch.from_numpy(prompt.ids)[None].to(self._torch_device)

    def forward(self, batch: torch.Tensor, head: Head) -> torch.Tensor:
        """Logits of shape (1, tokens, vocabulary), or (1, 1, vocabulary) for ``head="last"``."""
        with self.running(f"a forward of {batch.shape[1]} tokens"):
            at = None if head == "all" else LAST
            return self.logits(at, input_ids=batch, **self._cache_arguments())

    def score(self, batch: torch.Tensor, targets: npt.NDArray[np.int64], head: Head) -> Any:
        """The targets' log-probability and its scale, (1, 2): ``engine.MeasuredEngine``."""
        with self.running("the log-probabilities of a choice"):
            logits = self.tail(batch, len(targets), head)
            wanted = torch.from_numpy(targets).to(self._torch_device)
            return log_probabilities(logits, wanted, torch.zeros_like(wanted), 1)

    def tail(self, batch: torch.Tensor, last: int, head: Head) -> torch.Tensor:
        """Logits (last, vocabulary) after the last tokens of a prompt (1, tokens)."""
        with self.running(f"a forward of {batch.shape[1]} tokens"):
            at = None if head == "all" else (slice(None), slice(-last, None))
            return self.logits(at, input_ids=batch, **self._cache_arguments())[0, -last:]

    def read_score(self, scored: torch.Tensor) -> tuple[float, float]:
        """Of ``score``."""
        total, scale = scored[0].tolist()
        return total, scale

    def logits(self, at: Any, **arguments: Any) -> torch.Tensor:
        """The logits that the model's own forward gives for ``arguments``, within ``running``.

        ``at`` indexes rows and positions of hidden states (rows, tokens, size), such as ``LAST``:
        these alone reach the output embedding. None: all of them.
        """
        if at is None or self.head is None:
            logits: torch.Tensor = self.module(**arguments)[0]
            return logits if at is None else logits[at]
        reached = []

        def gather(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            if not given or given[0].ndim != 3:
                return None
            reached.append(True)
            return (given[0][at], *given[1:])

        hook = self.head.register_forward_pre_hook(gather)
        try:
            logits = self.module(**arguments)[0]
        finally:
            hook.remove()
        return logits if reached else logits[at]

    def untouched(self, batch: torch.Tensor, last: int = 1) -> torch.Tensor:
        """Logits (last, vocabulary) after its last tokens by the model's own forward, eager.

        No hook of ours, nothing compiled: what the other ways are held against.
        """
        with self._model.engine("eager").running("the model's own forward"):
            return cast("torch.Tensor", self.module(input_ids=batch)[0][0, -last:])

    def synchronize(self) -> None:
        """Wait for the device."""
        self.device.synchronize()

    def read(self, logits: torch.Tensor) -> tuple[list[float], float, int, str]:
        """Letter logits, the largest, arg-max and its text at the last position."""
        *letters, largest, best = self.read_rows(logits[:, -1])[0].tolist()
        return letters, largest, int(best), self.text(int(best))

    def read_rows(self, logits: torch.Tensor) -> torch.Tensor:
        """Letter logits, the largest without sign, and arg-max of every row, on the device.

        (rows, vocabulary) -> (rows, letters + 2): one tensor is one copy to the host, and float32
        holds every token id below 2**24.
        """
        rows = logits.float()
        low, high = rows.aminmax(dim=-1, keepdim=True)
        best = rows.argmax(dim=-1, keepdim=True).float()
        return torch.cat([rows[:, self._letters], torch.maximum(high, -low), best], dim=1)

    def compile_counts(self) -> CompileCounts:
        """What dynamo and inductor did since this engine was made."""
        if self.name == "eager":
            return CompileCounts()
        return dynamo_counts() - self._start

    def forget_compiled(self) -> None:
        """Reset dynamo: counts of what is compiled depend on nothing that ran before."""
        if self.name != "eager":
            torch.compiler.reset()
            self._forgotten = dynamo_counts()

    def not_compiled(self) -> str:
        """Why nothing was compiled since it was last forgotten; empty where something was."""
        if self.name == "eager" or (dynamo_counts() - self._forgotten).graphs:
            return ""
        return f"torch.compile compiled nothing: {why_not_compiled()}"

    def fingerprint(
        self,
        prompt: Prompt,
        head: Head,
        compiled: tuple[CompileCounts, CompileCounts],
        sample_tokens: int,
    ) -> Fingerprint:
        """What runs in a forward of ``prompt``: ``fingerprint.of_run``."""
        batch, model = self.prepare(prompt), self._model.module

        def run() -> None:
            self.forward(batch, head)
            self.synchronize()

        kind = self.device.kind
        return of_run(self.name, model, kind, run, prompt.ids, compiled, sample_tokens)

    def profile(
        self, prompts: Sequence[Prompt], head: Head, trace: Path | None = None
    ) -> Callable[[], Profile]:
        """One round under the profiler: ``profile.Profiler``.

        On a CPU the first one compiles anew, so that inductor's kernels tell their names: nothing
        that was timed before had to.
        """
        batches = [self.prepare(row) for prompt in prompts for row in prompt.rows]

        def forward(batch: torch.Tensor) -> None:
            self.forward(batch, head)
            self.synchronize()

        runs = [partial(forward, batch) for batch in batches]
        if self._profiler is None:
            self._profiler = Profiler(self.module, self.stack, self.compiled_forwards)
            if self.name != "eager" and self.device.kind == "cpu":
                self.forget_compiled()
                with named_kernels():
                    for run in runs:
                        run()
        tokens, on_device = sum(prompt.tokens for prompt in prompts), self.device.kind != "cpu"
        return self._profiler.round(runs, tokens, on_device, trace)

    def flops(self, tokens: int, head: Head) -> float | None:
        """FLOPs of the layers for a prompt of ``tokens``, and of the head where it is applied."""
        layers = self.layer_flops(tokens)
        more = self.head_flops(tokens if head == "all" else 1)
        return None if layers is None or more is None else layers + more

    def layer_flops(self, tokens: int, prefix: float = 0) -> float | None:
        """2 x weights a token for every matmul, and 4 x width for every (query, key) pair.

        Attention counts the pairs of the causal triangle, n(n+1)/2, and n x p for a prefix whose
        keys are at hand, once for QK^T and once for PV (Kaplan et al. 2020, arXiv 2001.08361,
        table 1, with the triangle instead of the square). None for a model with matmuls outside
        ``nn.Linear`` (a mixture of experts, say).
        """
        config = self.config
        heads = getattr(config, "num_attention_heads", None)
        # Of linear attention, a state or latent keys it is another number.
        other = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", *_WINDOWS}
        if self._layer_weights is None or not heads or other or hasattr(config, "kv_lora_rank"):
            return None
        try:
            width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        except Exception:  # transformers' own class of error for a size that differs by layer
            return None
        pairs = tokens * (tokens + 1) / 2 + tokens * prefix
        return float(2 * tokens * self._layer_weights + 4 * width * pairs * len(self.layers))

    def head_flops(self, positions: int) -> float | None:
        """FLOPs of the head at that many positions; None where it is no matrix that we know."""
        weight = getattr(self.head, "weight", None)
        return None if weight is None else float(2 * positions * weight.numel())

    def cache_shapes(self) -> list[tuple[int, int, int]]:
        """What every layer caches (``upstream.cache_shapes``); NoSharedPrefixes."""
        if self._model.unshared:
            raise NoSharedPrefixes(self._model.unshared)
        return self._model.cache_shapes[: len(self.layers)]  # fewer, in ``upstream.first_layers``

    @cached_property
    def config(self) -> Any:
        """The decoder's own config."""
        return cast("Any", self._model.module).config.get_text_config()

    @cached_property
    def _layer_weights(self) -> int | None:
        matrices = {id(m.weight): m.weight.numel() for m in _linears(self.layers)}
        if any(p.ndim >= 2 and id(p) not in matrices for p in self.layers.parameters()):
            return None
        return sum(matrices.values())

    def reset_peak_memory(self) -> None:
        """Start a new peak."""
        self.device.reset_peak_memory()

    def peak_memory_gib(self) -> float | None:
        """Peak memory since the reset, GiB."""
        return self.device.peak_memory_gib()

    def text(self, token: int) -> str:
        """The text of a token; empty without a tokenizer."""
        if token not in self._texts:
            tokenizer = self._model.tokenizer
            self._texts[token] = tokenizer.decode([token]) if tokenizer is not None else ""
        return self._texts[token]

    def _cache_arguments(self) -> dict[str, Any]:
        if self._empty_cache is None:
            return {"use_cache": False}
        config = cast("Any", self._model.module).config
        return {"use_cache": True, self._empty_cache: transformers.DynamicCache(config=config)}

    @cached_property
    def _empty_cache(self) -> str | None:
        """The argument for a new cache, where a forward is to have one.

        Traced without a cache, transformers materialises the causal mask and the flash kernel is
        lost; with an empty one it is not.
        """
        if self.name == "inductor" and self._model.case.engine.scope == "model":
            with suppress(NoSharedPrefixes):
                return cache_argument(self.module)
        return None

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Where the model may be called: this engine's forwards, errors in one line.

        ``what`` is run, such as ``a forward of 9 tokens``. Raises DeviceMemory, EngineError:
        the model's own code may raise anything.
        """
        self._model.activate(self.name)
        try:
            with torch.inference_mode():
                yield
        except compile_errors() as error:
            # "backend='inductor' raised:" says nothing yet: its next line does.
            first = " ".join(str(error).strip().splitlines()[:2])
            hint = "try engine.scope or engine.dynamic in the case's YAML"
            if "C++ compiler" in str(error):
                hint = "install g++, or name a C++ compiler in the environment variable CXX"
            if "file too short" in str(error):  # inductor writes its libraries in place
                hint = f"a killed compilation tore inductor's cache: delete {inductor_cache()}"
            raise EngineError(
                f"case '{self._model.case.id}': torch.compile failed on {what}: {first}; {hint}"
            ) from error
        except RuntimeError as error:
            replica = self._model.replica
            if is_full(error):
                memory = out_of_memory(self.device, what, error)
                if replica is not None:  # the other ranks are in the midst of this forward
                    replica.fail(str(memory))
                raise memory from error
            if replica is not None and (lost := replica.lost(error)) is not None:
                raise lost from error
            raise self._failed(what, error) from error
        except PerflineError:
            raise
        except Exception as error:
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: Exception) -> EngineError:
        first = (str(error).strip() or "no message").splitlines()[0]
        return EngineError(
            f"case '{self._model.case.id}': {self.name} failed on {what}: "
            f"{type(error).__name__}: {first}; see whether transformers runs "
            "it by itself; if so, tell us, and run it by an engine of your own meanwhile"
        )


def told(prompts: Sequence[Prompt]) -> dict[str, object]:
    """The prompts of a pass, as the other ranks that hold the model hear of them."""
    return {
        "task": prompts[0].task if prompts else "",
        "prompts": [prompt.id for prompt in prompts],
    }


def log_probabilities(
    logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, count: int
) -> torch.Tensor:
    """Sums of the targets' log-probabilities by row, and their scales: (count, 2), float32.

    ``logits`` (positions, vocabulary) stand before ``targets`` (positions), which belong to
    ``rows`` (positions) of ``count``. Scale: ``engine.MeasuredEngine.read_score``.
    """
    found = torch.zeros(count, 2, device=logits.device)
    for start in range(0, len(targets), _AT_ONCE):
        piece = slice(start, start + _AT_ONCE)
        some, wanted, of = logits[piece].float(), targets[piece], rows[piece]
        own = some.gather(1, wanted[:, None])[:, 0] - some.logsumexp(dim=1)
        found[:, 0].index_add_(0, of, own)
        found[:, 1].index_add_(0, of, some.abs().amax(dim=1).square())
    found[:, 1].sqrt_()
    return found


def proof_ids(vocabulary: int) -> list[npt.NDArray[np.int64]]:
    """Short prompts of unequal length with a beginning in common, which show how a model is run."""
    rng = np.random.default_rng(0)
    ids = rng.integers(vocabulary, size=(3, 24), dtype=np.int64)
    ids[:, :PROOF_PREFIX] = ids[0, :PROOF_PREFIX]
    return [row[:length] for row, length in zip(ids, (24, 9, 17), strict=True)]


def apart(found: torch.Tensor, own: torch.Tensor) -> float:
    """How far logits are from the model's ``own``, at most, as a share of the largest of these.

    0 where its own are no numbers: a pass over questions says that better.
    """
    if not torch.isfinite(own).all():
        return 0.0
    off = (found.float() - own.float()).abs().max() / own.float().abs().max().clamp(min=1e-6)
    return float("inf") if off.isnan() else float(off)


@contextmanager
def memory_in_words(device: Device, what: str) -> Iterator[None]:
    """Outside of an engine's own forwards too, a full device is a DeviceMemory."""
    try:
        yield
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise out_of_memory(device, what, error) from error


def out_of_memory(device: Device, what: str, error: BaseException) -> DeviceMemory:
    """The error that says how much memory there was, and what to lower."""
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


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (m for m in module.modules() if isinstance(m, nn.Linear))
