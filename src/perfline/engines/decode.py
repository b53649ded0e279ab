"""How does a loaded model generate token by token, and when does each token come?

Greedily, over transformers' own static cache: its length is fixed before the first token, so that
every step has the same shapes, and one graph serves them all. A layer that is compiled by itself is
handed its own part of the cache, as shared prefixes do it: the whole cache would be looked up by
the layer's number, which is a graph a layer, and an end at torch's limit of recompiles.

The cache takes its memory in one eager forward before anything is traced, and its tensors are
marked as never moving, without a guard on where they are: CUDA graphs copy nothing then, and the
layers still share their graph. A model that supports no static cache runs eagerly, on a cache that
grows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from perfline.engines.engine import CompileCounts, EngineName, Fingerprint, Generated, Ints
from perfline.engines.fingerprint import of_run
from perfline.engines.hf import Model
from perfline.engines.prefix_forward import see
from perfline.engines.torch_engine import LAST
from perfline.engines.upstream import (
    OneLayerCache,
    cache_argument,
    dynamic_cache,
    mark_static_address,
    static_cache,
    takes_cache_position,
)
from perfline.errors import NoDecode, NoSharedPrefixes


class Decoder:
    """``engine.MeasuredDecoder`` over one engine of a model.

    Attributes:
        static: whether the cache is a static one.
        positions: how many tokens, prompt included, the model takes.
    """

    def __init__(self, model: Model, name: EngineName) -> None:
        """NoDecode where the model keeps its state in another way, or cannot be compiled so."""
        self._model, self._engine = model, model.engine(name)
        stack, module = self._engine.stack, self._engine.module
        try:
            self._cache_of_model = cache_argument(module)
            self._cache_of_layer = cache_argument(self._engine.layers[0])
        except NoSharedPrefixes as why:
            raise NoDecode(str(why)) from why
        self.name, self.positions = name, model.positions
        self.static = static_cache(stack, self._engine.config, 1) is not None
        if not self.static and name != "eager":
            raise NoDecode(
                f"{type(stack).__name__} of transformers supports no static cache, and without "
                "one every token would be compiled anew"
            )
        self._cache_position = takes_cache_position(module)
        self._caches: dict[tuple[int, int], Any] = {}

    def generate(self, ids: Ints, tokens: int, length: int) -> Generated:
        """The ``tokens`` most likely tokens behind each row of ``ids``, one after the other.

        ``ids`` is (rows, width); ``length``, of the cache, is ``width + tokens`` or more. The
        device is synchronised before the prompt and behind the last token, and never in between
        where it has events to time by. Raises DeviceMemory, EngineError.
        """
        rows, width = ids.shape
        cache = self._cache(rows, length)
        device, synchronize = self._engine.device.torch, self._engine.synchronize
        with self._running(rows, length), self._layers_see(cache):
            prompt = torch.from_numpy(np.ascontiguousarray(ids)).to(device)
            places = torch.arange(width, device=device)[None]
            place = torch.full((1, 1), width, device=device)
            synchronize()
            begin = time.perf_counter()
            marks = [self._mark()]
            given = [self._next(cache, prompt, places)]
            marks.append(self._mark())
            for _ in range(tokens - 1):
                given.append(self._next(cache, given[-1], place))
                marks.append(self._mark())
                place += 1
            synchronize()
            whole_s = time.perf_counter() - begin
            found = torch.cat(given, dim=1).cpu().numpy()
        first_s, *steps_s = (_between(start, end) for start, end in pairwise(marks))
        return Generated(found, first_s, tuple(steps_s), whole_s)

    def logits_after(self, ids: Ints, last: int = 1) -> npt.NDArray[np.float32]:
        """Logits behind each of the ``last`` of ``ids``, by the engine's own forward, no cache."""
        batch = torch.from_numpy(np.ascontiguousarray(ids))[None].to(self._engine.device.torch)
        logits = self._engine.tail(batch, last, "last")
        return cast("npt.NDArray[np.float32]", logits.float().cpu().numpy())

    def streamed_bytes(self, rows: int, length: int) -> int | None:
        """Bytes that one step reads: weights, and the cache at its whole length.

        Of an embedding that is not the head as well, a step reads ``rows`` rows. None where the
        cache is not static, or the model does not read all of its weights (a mixture of experts).
        """
        engine = self._engine
        if not self.static or engine.head is None or engine.layer_flops(1) is None:
            return None
        stack, head = cast("Any", engine.stack), cast("torch.Tensor", engine.head.weight)
        weights = {id(p): p.nbytes for p in (*engine.stack.parameters(), head)}
        embedding = stack.get_input_embeddings().weight
        if embedding is not head:
            weights[id(embedding)] = rows * embedding.shape[1] * embedding.itemsize
        cache = self._cache(rows, length)
        read = (tensor.nbytes for part in cache.layers for tensor in (part.keys, part.values))
        return int(sum(weights.values()) + sum(read))

    def fingerprint(
        self,
        ids: Ints,
        tokens: int,
        length: int,
        compiled: tuple[CompileCounts, CompileCounts],
        prompt_tokens: int,
    ) -> Fingerprint:
        """What runs in ``generate``, once its forms are compiled: ``fingerprint.of_run``."""

        def run() -> None:
            self.generate(ids, tokens, length)

        module, kind = self._engine.module, self._engine.device.kind
        return of_run(self.name, module, kind, run, ids[0], compiled, prompt_tokens)

    def _next(self, cache: Any, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The most likely token behind ``ids`` (rows, width), which stand at ``places``."""
        if self._engine.compiled_forwards:
            cast("Any", torch.compiler).cudagraph_mark_step_begin()
        arguments = {"position_ids": places, self._cache_of_model: cache, "use_cache": True}
        if self._cache_position:
            arguments["cache_position"] = places[0]
        return self._engine.logits(LAST, input_ids=ids, **arguments).argmax(dim=-1)

    def _cache(self, rows: int, length: int) -> Any:
        """An empty cache; a static one is made once for every form, and its memory taken."""
        if not self.static:
            return dynamic_cache(self._engine.config)
        if (rows, length) not in self._caches:
            with self._model.engine("eager").running(f"a cache of {rows} x {length} tokens"):
                cache: Any = static_cache(self._engine.stack, self._engine.config, length)
                one = torch.zeros((rows, 1), dtype=torch.int64, device=self._engine.device.torch)
                arguments = {self._cache_of_model: cache, "use_cache": True}
                self._engine.logits(LAST, input_ids=one, **arguments)
                for part in cache.layers:
                    mark_static_address(part)
            self._caches[rows, length] = cache
        cache = self._caches[rows, length]
        with torch.inference_mode():
            cache.reset()
        return cache

    def _running(self, rows: int, length: int) -> Any:
        return self._engine.running(f"decoding {rows} x {length} tokens")

    @contextmanager
    def _layers_see(self, cache: Any) -> Iterator[None]:
        """Hand each compiled layer its own part of the cache, outside of what is compiled."""
        hooks = [
            layer.register_forward_pre_hook(
                see({self._cache_of_layer: OneLayerCache(part)}, layer), with_kwargs=True
            )
            for layer, part in zip(self._engine.layers, cache.layers, strict=False)
            if layer in self._engine.compiled_forwards
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mark(self) -> float | torch.Event:
        """This moment: on the host, or on the device, for which nobody waits."""
        device = self._engine.device
        if device.runs_behind:
            event = torch.Event(device.torch, enable_timing=True)
            event.record()
            return event
        device.synchronize()  # nothing to wait for on a CPU
        return time.perf_counter()


def _between(start: Any, end: Any) -> float:
    """Seconds between two marks; of events that the device is done with."""
    if isinstance(start, torch.Event):
        return float(start.elapsed_time(end)) / 1000
    return float(end - start)
