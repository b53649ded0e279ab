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

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import AttentionInterface

from perfline.cases.case import ROUNDING_FRACTION, Precision
from perfline.engines.torch_engine import (
    PROOF_PREFIX,
    PROOF_TAIL,
    TorchEngine,
    apart,
    log_probabilities,
    proof_ids,
)
from perfline.engines.upstream import (
    FULL,
    MASKED_ATTENTIONS,
    OneLayerCache,
    PrefixCache,
    PrefixLayer,
    Window,
    attending,
    attention_of,
    cache_argument,
    compile_errors,
    is_full,
    steady_positions,
    windows,
)
from perfline.errors import NoSharedPrefixes, PerflineError

GROUPED = "perfline_grouped_sdpa"
_PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


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
        watch: takes the logits of every ``answer``, (rows, vocabulary); None for nobody.
        bytes_per_token: of the keys and values that one row's attention reads, one layer at a time.
        held_bytes_per_token: of those that a prefix holds, in all layers.
        steady: how many positions, at most, depend on no others that are there (``Limits``).
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
        shapes = engine.cache_shapes()
        if len(shapes) != len(engine.layers):
            raise NoSharedPrefixes(
                f"{type(engine.module).__name__} has {len(engine.layers)} layers, and keeps keys "
                f"and values of {len(shapes)}"
            )
        self._cache_of_model = cache_argument(engine.module)
        self._cache_of_layer = cache_argument(engine.layers[0]) if engine.compiled_forwards else ""
        self._engine = engine
        self.watch: Callable[[torch.Tensor], None] | None = None
        self.least_rows = 2 if engine.compiled_forwards else 1
        self._overlap = engine.device.runs_behind
        heads = getattr(config, "num_attention_heads", shapes[0][0]) // engine.ranks
        # Quantised weights are of other dtypes than what is computed with.
        weights = (held for held in engine.layers.parameters() if held.dtype in _PRECISIONS)
        weight = next(weights, None)
        if weight is None:
            kind = type(engine.module).__name__
            raise NoSharedPrefixes(f"no layer of {kind} has a weight of a float")
        self._dtype, self._device = weight.dtype, weight.device
        self._fixed = {heads, config.hidden_size, len(engine.layers), *itertools.chain(*shapes)}
        if self._attention == "sdpa" and engine.device.kind == "cpu":
            self._attention = GROUPED
        repeated = shapes[0][0] != heads and self._attention != GROUPED
        self.bytes_per_token = self._dtype.itemsize * max(
            (kv_heads + heads * repeated) * (key + value) for kv_heads, key, value in shapes
        )
        held = sum(kv_heads * (key + value) for kv_heads, key, value in shapes)
        self.held_bytes_per_token = self._dtype.itemsize * held
        self._windows = windows(config, len(engine.layers))
        self.steady = steady_positions(config)
        made: dict[tuple[int, int], torch.Tensor] = {}

        def zeros(kv_heads: int, size: int) -> torch.Tensor:
            shape = (1, kv_heads, _FRONT, size)
            if (kv_heads, size) not in made:
                made[kv_heads, size] = torch.zeros(shape, dtype=self._dtype, device=self._device)
            return made[kv_heads, size]

        with torch.inference_mode():  # as all prefixes are: torch.compile tells them apart
            self.empty: KeysValues = [(zeros(n, key), zeros(n, value)) for n, key, value in shapes]

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
            cache, _ = self._run(above, ids, (slice(1), slice(1)), keep=True)  # no logits needed
            owns = [layer.own for layer in cache.layers]
            if any(own is None for own in owns):
                raise NoSharedPrefixes(
                    f"{type(self._engine.module).__name__} keeps no keys and values in some layers"
                )
            return [
                [
                    (_join(keys, own[0], row, length), _join(values, own[1], row, length))
                    for (keys, values), own in zip(above, owns, strict=True)
                    if own is not None
                ]
                for row, length in enumerate(lengths.tolist())
            ]

    def answer(
        self,
        above: KeysValues,
        ids: Ints,
        lengths: Ints,
        targets: Sequence[Ints] = (),
        short: Ints | None = None,
    ) -> torch.Tensor:
        """What each row answers, on its way to the host.

        (rows, letters + 2): ``TorchEngine.read_rows`` at its last token. With ``targets``, tokens
        of each row that are scored at its last positions, (rows, 2): ``log_probabilities``. ``ids``
        is (rows, width), rows of ``lengths`` tokens padded on the right: a pad comes after all that
        is read. ``short``: of prefixes ``beside`` each other. Raises DeviceMemory, EngineError.
        """
        with self._engine.running(_what(above, ids)):
            tails = np.array([len(each) for each in targets] or [1] * len(ids))
            logits = self._logits(above, ids, lengths, tails, short)
            if targets:
                wanted = self._to_device(np.concatenate(targets))
                rows = self._to_device(np.repeat(np.arange(len(ids)), tails))
                found = log_probabilities(logits, wanted, rows, len(ids))
            else:
                found = self._engine.read_rows(logits)
            return found.to("cpu", non_blocking=self._overlap)

    def beside(self, prefixes: Sequence[KeysValues]) -> tuple[KeysValues, Ints]:
        """Prefixes as rows of one, zeros in front of the shorter; and by how much each is short.

        DeviceMemory where there is no room for the copies.
        """
        lengths = np.array([_tokens(prefix) for prefix in prefixes], dtype=np.int64)
        short = lengths.max() - lengths

        def rows(each: Sequence[torch.Tensor]) -> torch.Tensor:
            both = zip(each, short.tolist(), strict=True)
            return torch.cat([functional.pad(held, (0, 0, more, 0)) for held, more in both])

        with self._engine.running(f"{len(prefixes)} prefixes of {lengths.max()} tokens"):
            layers = [zip(*layer, strict=True) for layer in zip(*prefixes, strict=True)]
            return [(rows([*keys]), rows([*values])) for keys, values in layers], short

    def prove(self) -> None:
        """NoSharedPrefixes where logits after a prefix are not those of the model's own forward.

        After one prefix, and after three of unequal lengths beside each other.
        """
        rows = proof_ids(self._engine.config.vocab_size)
        found = [self._after_prefixes(rows, np.array([PROOF_PREFIX]))]
        if self.least_rows == 1:  # else no plan has such rows
            found.append(self._after_prefixes(rows, PROOF_PREFIX - np.arange(len(rows))))
        own = [self._engine.untouched(self._to_device(row[None]), PROOF_TAIL) for row in rows]
        off = apart(torch.stack(found), torch.cat(own))
        if off > (allowed := ROUNDING_FRACTION[_PRECISIONS[self._dtype]]):
            raise NoSharedPrefixes(
                f"logits of {type(self._engine.module).__name__} after a prefix are off by "
                f"{off:.2g} of the largest from those of its own forward (allowed {allowed:g})"
            )

    def _after_prefixes(self, rows: Sequence[Ints], ends: Ints) -> torch.Tensor:
        """Logits at the last ``PROOF_TAIL`` of each row, its prefix computed up to its ``ends``.

        One end: all rows are after the first one's prefix.
        """
        front = np.stack([row[:PROOF_PREFIX] for row in rows[: len(ends)]])
        prefixes = self.extend(self.empty, front, ends)
        above, short = (prefixes[0], None) if len(ends) == 1 else self.beside(prefixes)
        before = np.broadcast_to(ends, len(rows))
        lengths = np.array([len(row) for row in rows]) - before
        ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = row[before[i] :]
        with self._engine.running(_what(above, ids)):
            return self._logits(above, ids, lengths, np.full(len(rows), PROOF_TAIL), short)

    def _logits(
        self,
        above: KeysValues,
        ids: Ints,
        lengths: Ints,
        tails: Ints,
        short: Ints | None = None,
    ) -> torch.Tensor:
        """Logits at the last ``tails`` tokens of each row, (positions, vocabulary)."""
        rows = np.repeat(np.arange(len(ids)), tails)
        ends = np.repeat(np.cumsum(tails), tails)  # of each row's positions among all
        places = lengths[rows] - (ends - np.arange(len(rows)))
        at = (self._to_device(rows)[:, None], self._to_device(places)[:, None])
        _, logits = self._run(above, ids, at, keep=False, short=short)
        if self.watch is not None:
            self.watch(logits[:, 0])
        return logits[:, 0]

    def _run(
        self, above: KeysValues, ids: Ints, at: Any, keep: bool, short: Ints | None = None
    ) -> tuple[PrefixCache, torch.Tensor]:
        """Run the model on ``ids`` (rows, width) after ``above``; its logits ``at`` a place.

        A compiled stack runs a lone row twice over. NoSharedPrefixes where the model's own code
        does not take such a cache.
        """
        if len(ids) < self.least_rows:
            ids = np.repeat(ids, self.least_rows, axis=0)
        width = ids.shape[1]
        before = _tokens(above)
        zeros = 2 + -(2 + before + width) % _ALIGN
        skip = _FRONT - zeros
        cache = PrefixCache([PrefixLayer(k[:, :, skip:], v[:, :, skip:]) for k, v in above], keep)
        hidden = None if short is None else self._to_device(short)[:, None, None]
        kinds = {*self._windows, FULL}
        masks = {each: self._mask(zeros, before, width, each, hidden) for each in kinds}
        places = torch.arange(before, before + width, device=self._device)[None]
        with attending(self._config, self._attention), self._layers_see(cache, masks):
            arguments = {
                "input_ids": self._to_device(ids),
                "attention_mask": masks[FULL],
                "position_ids": places if hidden is None else places - hidden[:, 0],
                self._cache_of_model: cache,
            }
            try:
                logits = self._engine.logits(at, **arguments, use_cache=True)
            except Exception as why:
                known: tuple[type[Exception], ...] = (PerflineError, *compile_errors())
                rank = self._engine.ranks > 1 and isinstance(why, RuntimeError)  # one lost, say
                if isinstance(why, known) or is_full(why) or rank:
                    raise
                first = (str(why) or "no message").splitlines()[0]
                raise NoSharedPrefixes(
                    f"{type(self._engine.module).__name__} does not run after a prefix: "
                    f"{type(why).__name__}: {first}"
                ) from why
        return cache, logits

    @contextmanager
    def _layers_see(
        self, cache: PrefixCache, masks: Mapping[Window, torch.Tensor]
    ) -> Iterator[None]:
        """Hand each layer its own mask, and a compiled one its own part of the cache.

        Outside of what is compiled: a layer would look itself up by its number, and be compiled
        once for every number. Where no layer has a window, the stack's mask is that of all.
        """
        hooks = []
        parts = zip(self._engine.layers, cache.layers, self._windows, strict=True)
        for layer, part, window in parts:
            own: dict[str, Any] = {} if len(masks) == 1 else {"attention_mask": masks[window]}
            if layer in self._engine.compiled_forwards:
                own[self._cache_of_layer] = OneLayerCache(part)
                if not cache.keep:
                    hooks.append(layer.register_forward_hook(_drop(part)))
            if own:
                hooks.append(layer.register_forward_pre_hook(see(own, layer), with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mask(
        self,
        zeros: int,
        before: int,
        width: int,
        window: Window,
        short: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What each query may see, to be added: (1 or rows, 1, width, zeros + before + width).

        ``short``, (rows, 1, 1), are more zeros in front of a row. ``is_causal`` would align queries
        with the first keys, not the last.
        """
        key = torch.arange(zeros + before + width, device=self._device)
        query = torch.arange(width, device=self._device)[:, None] + zeros + before
        first = zeros if short is None else short + zeros
        hidden = (key < first) | (key > query)
        kind, reach = window
        if kind == "sliding_attention":
            hidden |= key <= query - reach
        elif kind == "chunked_attention":
            hidden |= (key - first) // reach != (query - first) // reach
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(hidden, torch.finfo(self._dtype).min)
        return mask[None, None] if short is None else mask[:, None]

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
    own: Mapping[str, Any], layer: torch.nn.Module
) -> Callable[[Any, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """A hook that gives a layer its own arguments, by place where it is given them by place."""
    names = list(inspect.signature(type(layer).forward).parameters)[1:]

    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        by_place = names[: len(args)]
        placed = tuple(own.get(name, each) for name, each in zip(by_place, args, strict=True))
        named = {name: value for name, value in own.items() if name not in by_place}
        return placed, {**kwargs, **named}

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
