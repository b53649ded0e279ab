"""How does a model run on tokens that come after a prefix whose keys and values are at hand?

Every forward has one form, so that a compiled layer needs a single graph: a lone row is run twice
over (nodes are a few per cent of the work, a second graph is half the compile time), and there is
always a prefix, if only of hidden zeros. They stand in front, 2 to 17 of them, so that
sizes 0 and 1, which torch.compile specialises on, never come up, and so that the mask's rows are
multiples of 16, as the fused attention kernels want.

transformers' ``sdpa`` gives each query head a copy of its group's keys and values wherever there is
a mask, as CUDA's fused kernels take no mask with grouped heads. A CPU's does, and there the copies
cost more than they save: ``grouped_sdpa`` makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import AttentionInterface

from perfline.engines.torch_engine import TorchEngine
from perfline.engines.upstream import (
    MASKED_ATTENTIONS,
    OneLayerCache,
    PrefixCache,
    PrefixLayer,
    attending,
    attention_of,
    cache_argument,
    compile_errors,
    is_full,
)
from perfline.errors import NoSharedPrefixes, PerflineError

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


Ints = npt.NDArray[np.int64]
KeysValues = list[tuple[torch.Tensor, torch.Tensor]]  # by layer: (1, heads, _FRONT + tokens, size)
# Zeros in front of every prefix, of which a forward takes 2 to 17: never all of them, or the slice
# would be contiguous now and then, which is a graph of its own to torch.compile.
_FRONT = 18
_ALIGN = 16


class PrefixForward:
    """Forwards after a prefix, on one engine.

    Attributes:
        empty: the prefix of no tokens.
        least_rows: 2 where the engine is compiled: it runs a lone row twice over.
        bytes_per_token: of the keys and values that one row's attention reads, one layer at a time.
    """

    def __init__(self, engine: TorchEngine) -> None:
        """NoSharedPrefixes for an attention without explicit mask, or a model without KV cache."""
        config = self._config = engine.config
        self._attention = attention_of(config)
        if self._attention not in MASKED_ATTENTIONS:
            raise NoSharedPrefixes(
                f"they need an attention that takes a mask; model.attention is "
                f"'{self._attention}', expected {' or '.join(MASKED_ATTENTIONS)}"
            )
        self._cache_of_stack = cache_argument(engine.stack)
        self._cache_of_layer = cache_argument(engine.layers[0])
        self._engine = engine
        self.least_rows = 2 if engine.compiled_forwards else 1
        self._overlap = engine.device.runs_behind
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_attention_heads // engine.ranks
        kv_heads = getattr(config, "num_key_value_heads", None)
        kv_heads = heads if kv_heads is None else kv_heads // engine.ranks
        weight = next(engine.layers.parameters())
        self._dtype, self._device = weight.dtype, weight.device
        self._fixed = {heads, kv_heads, size, config.hidden_size, len(engine.layers)}
        if self._attention == "sdpa" and engine.device.kind == "cpu":
            self._attention = GROUPED
        repeated = kv_heads != heads and self._attention != GROUPED
        copies = kv_heads + heads if repeated else kv_heads
        self.bytes_per_token = 2 * copies * size * self._dtype.itemsize
        with torch.inference_mode():  # as all prefixes are: torch.compile tells them apart
            zeros = torch.zeros((1, kv_heads, _FRONT, size), dtype=self._dtype, device=self._device)
        self.empty: KeysValues = [(zeros, zeros)] * len(engine.layers)

    def compile(self) -> None:
        """Run the graph, and every form of forward, once.

        torch.compile takes two sizes that are equal at its first look for always equal: in the
        first of these forwards all sizes differ.
        """
        rows, width = _distinct_sizes(self._fixed)
        ids, lengths = np.zeros((rows, width), dtype=np.int64), np.full(rows, width)
        self.answer(self.empty, ids, lengths)
        longer = np.zeros((2, 2 * width + 3), dtype=np.int64)
        (node, _) = self.extend(self.empty, longer, np.full(2, longer.shape[1]))
        self.answer(node, ids, lengths)
        for more in range(1, self._engine.ranks):
            # Where transformers hands a split model DTensors (4.57 does), torch tells numbers of
            # rows that the ranks divide from those that they do not.
            ids, lengths = np.repeat(ids[:1], rows + more, axis=0), np.full(rows + more, width)
            self.answer(self.empty, ids, lengths)

    def extend(self, above: KeysValues, ids: Ints, lengths: Ints) -> list[KeysValues]:
        """The prefix ``above`` with each row of ``ids`` behind it, each of its own length.

        ``ids`` is (rows, width), padded on the right. Raises DeviceMemory, EngineError,
        NoSharedPrefixes.
        """
        with self._engine.running(_what(above, ids)):
            cache, _ = self._run(above, ids, keep=True)
            owns = [layer.own for layer in cache.layers]
            if any(own is None for own in owns):
                raise NoSharedPrefixes(
                    f"{type(self._engine.stack).__name__} keeps no keys and values in some layers"
                )
            return [
                [
                    (_join(keys, own[0], row, length), _join(values, own[1], row, length))
                    for (keys, values), own in zip(above, owns, strict=True)
                    if own is not None
                ]
                for row, length in enumerate(lengths.tolist())
            ]

    def answer(self, above: KeysValues, ids: Ints, lengths: Ints) -> torch.Tensor:
        """Letter logits and arg-max at each row's last token, on their way to the host: (rows, 5).

        ``ids`` is (rows, width), rows of ``lengths`` tokens padded on the right: a pad comes after
        all that is read. Raises DeviceMemory, EngineError.
        """
        with self._engine.running(_what(above, ids)):
            _, hidden = self._run(above, ids, keep=False)
            rows = torch.arange(len(lengths), device=self._device)
            logits = self._engine.head(hidden[rows, self._to_device(lengths - 1)])
            return self._engine.read_rows(logits).to("cpu", non_blocking=self._overlap)

    def _run(self, above: KeysValues, ids: Ints, keep: bool) -> tuple[PrefixCache, torch.Tensor]:
        """Run the stack on ``ids`` (rows, width) after ``above``; the last hidden states.

        A compiled stack runs a lone row twice over, and so gives two rows back. NoSharedPrefixes
        where the model's own code does not take such a cache.
        """
        if len(ids) < self.least_rows:
            ids = np.repeat(ids, self.least_rows, axis=0)
        width = ids.shape[1]
        before = _tokens(above)
        zeros = 2 + -(2 + before + width) % _ALIGN
        skip = _FRONT - zeros
        cache = PrefixCache([PrefixLayer(k[:, :, skip:], v[:, :, skip:]) for k, v in above], keep)
        with attending(self._config, self._attention), self._layers_see(cache):
            arguments = {
                "input_ids": self._to_device(ids),
                "attention_mask": self._mask(zeros, before, width),
                "position_ids": torch.arange(before, before + width, device=self._device)[None],
                self._cache_of_stack: cache,
            }
            try:
                hidden: torch.Tensor = self._engine.stack(**arguments, use_cache=True)[0]
            except Exception as why:
                known: tuple[type[Exception], ...] = (PerflineError, *compile_errors())
                rank = self._engine.ranks > 1 and isinstance(why, RuntimeError)  # one lost, say
                if isinstance(why, known) or is_full(why) or rank:
                    raise
                first = (str(why) or "no message").splitlines()[0]
                raise NoSharedPrefixes(
                    f"{type(self._engine.stack).__name__} does not run after a prefix: "
                    f"{type(why).__name__}: {first}"
                ) from why
        return cache, hidden

    @contextmanager
    def _layers_see(self, cache: PrefixCache) -> Iterator[None]:
        """Hand each compiled layer its own part of the cache, outside of what is compiled.

        A layer would look itself up by its number, and be compiled once for every number.
        """
        hooks = []
        for layer, part in zip(self._engine.layers, cache.layers, strict=True):
            if layer in self._engine.compiled_forwards:
                seen = see(self._cache_of_layer, OneLayerCache(part))
                hooks.append(layer.register_forward_pre_hook(seen, with_kwargs=True))
                if not cache.keep:
                    hooks.append(layer.register_forward_hook(_drop(part)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mask(self, zeros: int, before: int, width: int) -> torch.Tensor:
        """What each query may see, to be added: (1, 1, width, zeros + before + width).

        ``is_causal`` would align queries with the first keys, not the last.
        """
        key = torch.arange(zeros + before + width, device=self._device)
        query = torch.arange(width, device=self._device)[:, None] + zeros + before
        hidden = (key < zeros) | (key > query)
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(hidden, torch.finfo(self._dtype).min)[None, None]

    def _to_device(self, array: Ints) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._overlap:
            # From pageable memory the copy would wait for all that is queued.
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def _join(above: torch.Tensor, own: torch.Tensor, row: int, length: int) -> torch.Tensor:
    return torch.cat([above, own[row : row + 1, :, :length]], dim=2)


def _tokens(above: KeysValues) -> int:
    return above[0][0].shape[2] - _FRONT


def _what(above: KeysValues, ids: Ints) -> str:
    return f"a forward of {ids.shape[0]} x {ids.shape[1]} tokens on a prefix of {_tokens(above)}"


def see(
    name: str, cache: OneLayerCache
) -> Callable[[Any, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """The pre-hook that has a layer find ``cache`` under ``name``."""

    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, name: cache}

    return hook


def _drop(part: PrefixLayer) -> Callable[[Any, Any, Any], None]:
    def hook(*_: Any) -> None:
        part.own = None

    return hook


def _distinct_sizes(fixed: set[int]) -> tuple[int, int]:
    """Rows and width of a forward on no prefix whose sizes all differ, also from ``fixed``."""
    width = 18
    while True:
        width += 1
        rows = 3 + width % 5
        zeros = 2 + -(2 + width) % _ALIGN
        sizes = (rows, width, zeros, zeros + width, _FRONT)
        if len(set(sizes)) == len(sizes) and fixed.isdisjoint(sizes):
            return rows, width
