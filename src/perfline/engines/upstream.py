"""What do we lean on inside transformers and torch, and does the installed version have it?

All that is private there, or public and still moving, is used here and nowhere else. Each line has
a contract test in ``tests/unit/engines/test_upstream.py``, which says what went away:

=====================================================  ======================  ====================
what                                                   holds for               without it
=====================================================  ======================  ====================
``cache_utils.Cache`` and ``.DynamicLayer``, which     transformers 4.57-5.24  the plain path
attention calls as ``update(keys, values, layer_idx)``
a stack's and a layer's argument for the cache:        to 5.23                 the plain path
``past_key_values``; ``cache``                         from 5.24
``StaticCache``, whose layers write in place, and      4.57-5.24               decode runs eagerly
``_can_compile_fullgraph`` of a stack
a stack's argument ``cache_position``                  4.57-5.x                not passed
``torch._dynamo.mark_static_address(guard)``           torch 2.9-2.15          CUDA graphs copy
a decoder stack takes a 4D mask as it is               4.57-5.24               the plain path
``sub_configs`` of a config; ``key_mapping`` of        4.57-5.24               towers are loaded
``from_pretrained``; ``model.language_model`` in the                           with the language
names of a multimodal model's tensors
``AttentionInterface`` (``attention``)                 4.57-5.24               the plain path
``config._attn_implementation``                        4.57-5.24               an error
``_supports_sdpa`` of a model's class                  4.57-5.24               ``sdpa`` is asked
``is_encoder_decoder``, ``is_decoder``, ``is_causal``  4.57-5.24               encoders run as LMs
and ``use_bidirectional_attention`` of a config
``get_output_embeddings``                              4.57-5.24               an error
layers in an ``nn.ModuleList``; ``get_decoder``        4.57-5.24               an error
``cache_utils.DynamicCache(config)``, its ``layers``   4.57-5.24               the plain path
``rope_parameters`` of a config; ``rope_scaling``      from 5.0; to 4.57       long prompts share
``is_quantized`` of a model whose quantizer expands    4.57-5.24               config.json's word
its weights: False
``distributed.DistributedConfig(tp_size)``             from 5.1                ``tp_plan="auto"``
logger ``transformers.modeling_utils``                 4.57-5.24               lines on stderr
``torch._dynamo.utils.counters``                       torch 2.9-2.15          an error
``torch._dynamo.config.fail_on_recompile_limit_hit``   torch 2.9-2.15          an error
``torch._dynamo.exc``                                  torch 2.9-2.15          an error
``torch._inductor.runtime.cache_dir_utils.cache_dir``  torch 2.9-2.15          no path in a hint,
                                                                               one cache for all
``torch._inductor.metrics``, the profiler's name of a   torch 2.9-2.15         counts of 0, and all
compiled region                                                               operators are eager
``torch._inductor.config.cpp.enable_kernel_profile``,  torch 2.9-2.15          no kernel is named,
kernels named ``cpp_fused_..``, ``triton_poi_fused_..``                        their time is Python
logger ``torch.__trace``                               torch 2.9-2.15          lines in a failure
a full CPU is a ``RuntimeError`` of its allocator      torch 2.9-2.15          no halving
=====================================================  ======================  ====================

What is there is found by looking (``inspect.signature``, ``hasattr``); no version is compared.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from perfline.engines.engine import CompileCounts
from perfline.engines.environment import TESTED
from perfline.errors import EngineError, NoFidelity, NoSharedPrefixes

if TYPE_CHECKING:
    from perfline.distributed.replica import Replica

# As ``pkgutil.resolve_name`` takes them: what every forward needs, and what shared prefixes need.
NEEDED = (
    "transformers:PreTrainedModel.get_output_embeddings",
    "torch._dynamo.utils:counters",
    "torch._dynamo.config:fail_on_recompile_limit_hit",
    "torch._dynamo.exc:TorchDynamoException",
    "torch._dynamo.exc:FailOnRecompileLimitHit",
)
NEEDED_FOR_PREFIXES = (
    "transformers:AttentionInterface.register",
    "transformers.cache_utils:Cache.update",
    "transformers.cache_utils:Cache.get_seq_length",
    "transformers.cache_utils:DynamicLayer.update",
    "transformers.cache_utils:DynamicLayer.get_seq_length",
)
Window = tuple[str, int]  # how a layer attends, and how far back
FULL: Window = ("full_attention", 0)
CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past")  # the newest name first
MASKED_ATTENTIONS = ("sdpa", "eager")  # that take an explicit mask
_CHANGING_ROPE = {  # frequencies that a forward's length changes, and from where on
    "longrope": "original_max_position_embeddings",
    "dynamic": "max_position_embeddings",
}

try:
    cache_utils: Any = importlib.import_module("transformers.cache_utils")
except ImportError:  # ``lacking`` says so; the plain path runs without
    cache_utils = None
Cache: Any = getattr(cache_utils, "Cache", object)
DynamicLayer: Any = getattr(cache_utils, "DynamicLayer", object)


class PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values before the tokens of a forward, shared by all its rows.

    Attributes:
        own: the forward's own keys and values, of which a longer prefix is made; who does not want
            that drops them after the layer.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """``keys`` and ``values`` are (1, heads, tokens, size)."""
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.own: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prefix and own keys and values of all rows, each in one piece."""
        self.own = (key_states, value_states)
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=2),
        )


class PrefixCache(Cache):  # type: ignore[misc]
    """The cache of a forward after a prefix: one ``PrefixLayer`` a layer of the stack.

    ``keep`` says whether the forward's own keys and values are to outlive their layer.
    """

    layers: list[PrefixLayer]

    def __init__(self, layers: list[PrefixLayer], keep: bool) -> None:
        """``layers`` in the stack's order."""
        super().__init__(layers=layers)
        self.keep = keep

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``PrefixLayer.update`` of that layer."""
        layer = self.layers[layer_idx]
        whole = layer.update(key_states, value_states)
        if not self.keep:
            layer.own = None
        return whole


class OneLayerCache(Cache):  # type: ignore[misc]
    """What a layer that is compiled by itself takes for its cache: its own part of it.

    It never looks at ``layer_idx``: torch.compile would make a graph for every number.
    """

    def __init__(self, layer: Any) -> None:
        """The part of the layer that it is handed to."""
        super().__init__(layers=[layer])

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *more: Any,
        **named: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``update`` of the one layer."""
        whole: tuple[torch.Tensor, torch.Tensor] = self.layers[0].update(
            key_states, value_states, *more, **named
        )
        return whole


def lacking(symbols: Sequence[str]) -> str:
    """What this installation lacks of ``symbols``, in a sentence; empty where nothing."""
    for symbol in symbols:
        try:
            pkgutil.resolve_name(symbol)
        except (ImportError, AttributeError):
            package = symbol.partition(":")[0].partition(".")[0]
            first, last = TESTED[package]
            return (
                f"{package} {metadata.version(package)} lacks {symbol.replace(':', '.')}; perfline "
                f"was tested on {package} {first} to {last}"
            )
    return ""


def check() -> None:
    """EngineError where the installed versions lack what every forward needs."""
    if problem := lacking(NEEDED):
        raise EngineError(f"{problem}: install one of these")


def check_prefixes() -> None:
    """NoSharedPrefixes where the installed versions lack what a forward after a prefix needs."""
    if problem := lacking(NEEDED_FOR_PREFIXES):
        raise NoSharedPrefixes(problem)


def cache_argument(module: nn.Module) -> str:
    """The name under which ``module``, a stack or a layer, takes its cache.

    NoSharedPrefixes where it takes none: the model keeps its state in another way.
    """
    # The class's forward: the module's own may be a compiled one.
    parameters = inspect.signature(type(module).forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in parameters:
            return name
    raise NoSharedPrefixes(
        f"{type(module).__name__} of transformers {metadata.version('transformers')} takes no "
        f"{' or '.join(CACHE_ARGUMENTS)}"
    )


def static_cache(stack: nn.Module, config: Any, length: int) -> Any | None:
    """The static cache of transformers, of ``length`` tokens; None where ``stack`` supports none.

    A model says so itself; in one whose layers differ (sliding windows, states of another kind) no
    graph could serve all layers, and perfline lets it be.
    """
    made: Any = getattr(cache_utils, "StaticCache", None)
    kind: Any = getattr(cache_utils, "StaticLayer", None)
    if made is None or kind is None or not getattr(stack, "_can_compile_fullgraph", False):
        return None
    cache = made(config=config, max_cache_len=length)
    return cache if all(type(layer) is kind for layer in cache.layers) else None


def dynamic_cache(config: Any) -> Any:
    """The cache of transformers that grows."""
    return cache_utils.DynamicCache(config=config)


def takes_cache_position(stack: nn.Module) -> bool:
    """Whether ``stack`` must be told where its tokens go in the cache, as older versions must."""
    return "cache_position" in inspect.signature(type(stack).forward).parameters


def mark_static_address(layer: Any) -> None:
    """Tell torch.compile that the tensors of a static cache's layer never move.

    Without a guard on where they are, which is transformers' mark: a graph would serve one layer.
    """
    for tensor in vars(layer).values():
        if isinstance(tensor, torch.Tensor):
            torch._dynamo.mark_static_address(tensor, guard=False)


def attention_of(config: Any) -> str:
    """The attention that a model of ``config`` uses, such as ``sdpa``."""
    return str(config._attn_implementation)


def best_attention(config: Any, asked: str) -> str:
    """``asked``; ``eager`` for an ``sdpa`` that the model's class does not declare."""
    kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    has_sdpa = getattr(kind, "_supports_sdpa", True)
    return "eager" if asked == "sdpa" and not has_sdpa else asked


# Masked LMs that are causal LMs, too, where this key of their config says so.
_CAUSAL_KEY = {"xlm": ("causal", True), "xlnet": ("attn_type", "uni")}


def not_decoder_only(config: Any) -> tuple[str, Any] | None:
    """The key of ``config``, and its value, by which its model is no decoder-only LM; or None.

    It has an encoder, or a token attends to those that come after it. ``is_decoder`` is of masked
    LMs only: other kinds have the key, and no meaning for it.
    """
    if getattr(config, "is_encoder_decoder", False):
        return "is_encoder_decoder", True
    text, kind = config.get_text_config(), config.model_type
    if (both := getattr(text, "use_bidirectional_attention", None)) in (True, "all"):
        return "use_bidirectional_attention", both
    if getattr(text, "is_causal", None) is False:
        return "is_causal", False
    masked = (*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "xlnet")
    key, causal = _CAUSAL_KEY.get(kind, ("is_decoder", True))
    found = getattr(config, key, None)
    return (key, found) if kind in masked and found != causal else None


# Names of a multimodal checkpoint's tensors, and what the language part alone calls them.
LANGUAGE_KEYS = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",  # as older transformers saved
    r"^language_model\.lm_head": "lm_head",
}


def language_part(config: Any) -> Any:
    """The config of a multimodal model's language part, where that is a causal LM by itself.

    ``config`` where there is no other part, where transformers takes the language part already, or
    has no class for it, and where weights are quantised: a quantizer names modules of the whole.
    """
    mapping: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    text = config.get_text_config()
    towers = set(getattr(config, "sub_configs", {})) - {"text_config"}
    whole, part = mapping.get(type(config), None), mapping.get(type(text), None)
    quantised = any(getattr(each, "quantization_config", None) for each in (config, text))
    if text is config or not towers or quantised or None in (whole, part) or whole is part:
        return config
    text.tie_word_embeddings = config.tie_word_embeddings  # the whole model's word counts
    return text


@contextmanager
def attending(config: Any, implementation: str) -> Iterator[None]:
    """Let the model of ``config`` use that attention meanwhile; for masks that are given whole."""
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def decoder(module: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder stack of a causal LM and its layers, wherever they stand.

    The layers are the longest ``nn.ModuleList`` of the language part that stands in no other list;
    the stack is the module that holds them. EngineError where there is none.
    """
    part: Any = module
    with suppress(AttributeError, NotImplementedError):
        part = part.get_decoder()  # of several towers, the one of the language
    for root in (part, module):
        if isinstance(root, nn.Module) and (found := list(_lists(root))):
            return max(found, key=lambda pair: len(pair[1]))
    raise EngineError(
        f"{type(module).__name__} holds no list of decoder layers; expected a decoder-only LM"
    )


@contextmanager
def first_layers(module: nn.Module, count: int | None) -> Iterator[None]:
    """Let a causal LM run its first ``count`` decoder layers alone meanwhile; None: all of them.

    NoFidelity where another list of its modules would then pass for the layers.
    """
    stack, layers = decoder(module)
    if count is None or count >= len(layers):
        yield
        return
    (name,) = (name for name, child in stack.named_children() if child is layers)
    first = layers[:count]
    setattr(stack, name, first)
    try:
        if decoder(module)[1] is not first:
            raise NoFidelity(
                f"{type(module).__name__} does not run {count} of its layers alone: ask for more "
                "by fidelity.layers in the case's YAML"
            )
        yield
    finally:
        setattr(stack, name, layers)


def _lists(root: nn.Module) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    for child in root.children():
        if isinstance(child, nn.ModuleList):
            yield root, child
        else:
            yield from _lists(child)


def cache_shapes(module: Any, ids: torch.Tensor) -> list[tuple[int, int, int]]:
    """(heads, size of a key, size of a value) of every layer that caches, by a forward of ``ids``.

    NoSharedPrefixes where a layer keeps anything but keys and values: a state, a convolution.
    """
    name = cache_argument(module)
    cache = cache_utils.DynamicCache(config=module.config)
    try:
        module(input_ids=ids, use_cache=True, **{name: cache})
    except Exception as why:  # a model's own code may raise anything
        first = (str(why) or "no message").splitlines()[0]
        raise NoSharedPrefixes(
            f"{type(module).__name__} takes no cache: {type(why).__name__}: {first}"
        ) from why
    plain = (DynamicLayer, getattr(cache_utils, "DynamicSlidingWindowLayer", DynamicLayer))
    shapes = []
    for number, layer in enumerate(cache.layers):
        kept: list[Any] = [getattr(layer, part, None) for part in ("keys", "values")]
        if type(layer) not in plain or any(getattr(each, "ndim", 0) != 4 for each in kept):
            raise NoSharedPrefixes(
                f"layer {number} of {type(module).__name__} keeps a {type(layer).__name__}, not "
                "keys and values alone"
            )
        shapes.append((kept[0].shape[1], kept[0].shape[3], kept[1].shape[3]))
    return shapes


def windows(config: Any, layers: int) -> list[Window]:
    """What each layer's attention sees of the tokens before: its kind, and how many of them.

    NoSharedPrefixes for a kind that is neither full, nor a sliding window, nor chunks.
    """
    reaches: dict[str, Any] = {
        "full_attention": 0,
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        sliding = reaches["sliding_attention"] and getattr(config, "use_sliding_window", True)
        kinds = ["sliding_attention" if sliding else "full_attention"] * layers
    for kind in kinds:
        if reaches.get(kind) is None:
            raise NoSharedPrefixes(f"layers of '{kind}' are not known")
    return [(kind, int(reaches[kind])) if reaches[kind] else FULL for kind in kinds[:layers]]


def expanded(module: nn.Module) -> bool:
    """Whether a quantizer expanded the weights at the load (MXFP4 without its kernels does)."""
    return getattr(module, "is_quantized", True) is False


def steady_positions(config: Any) -> int | None:
    """Up to how many positions rotary frequencies are the same in every forward; None: always are.

    ``longrope`` takes other ones for all positions where the last is beyond those of the first
    training (arXiv 2402.13753), and ``dynamic`` where it is beyond what the model takes: the keys
    of a prefix are then not those of the whole prompt.
    """
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_layer = [each for each in found.values() if isinstance(each, dict)] or [found]
    limits = [
        each.get(key) or getattr(config, key, None)
        for each in by_layer
        for kind, key in _CHANGING_ROPE.items()
        if kind in str(each.get("rope_type") or each.get("type"))
    ]
    return min((limit for limit in limits if limit), default=None)


def split_arguments(replica: Replica) -> dict[str, Any]:
    """What ``from_pretrained`` is told, so that transformers splits the model over a replica."""
    config: Any = None
    with suppress(ImportError):
        config = importlib.import_module("transformers.distributed").DistributedConfig
    if "tp_size" in getattr(config, "__dataclass_fields__", {}):
        return {"distributed_config": config(tp_size=replica.size)}
    return {"tp_plan": "auto"}  # older transformers: over the whole world


@contextmanager
def untold_tensors() -> Iterator[None]:
    """Keep transformers from telling, a line each, of tensors that are new or left out."""
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def fail_at_the_recompile_limit() -> Any:
    """A context in which dynamo raises there, instead of going on in eager mode without a word."""
    if not os.environ.get("TORCH_TRACE"):
        # pytest listens to every logger, and would show all of this one with a failure.
        logging.getLogger("torch.__trace").disabled = True
    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)


def compile_errors() -> tuple[type[Exception], ...]:
    """What ``torch.compile`` raises where it cannot compile."""
    found: Any = torch._dynamo.exc
    return (found.TorchDynamoException, found.FailOnRecompileLimitHit)


def dynamo_counts() -> CompileCounts:
    """What dynamo and inductor have compiled in this process."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return CompileCounts(
        graphs=counters["stats"]["unique_graphs"],
        graph_breaks=sum(counters["graph_break"].values()),
        cache_hits=inductor["fxgraph_cache_hit"],
        cache_misses=inductor["fxgraph_cache_miss"],
        kernels=_inductor_metric("generated_kernel_count"),
        nodes=_inductor_metric("ir_nodes_pre_fusion"),
    )


def _inductor_metric(name: str) -> int:
    """A count of inductor's; its cache on disk keeps them with what it holds."""
    return int(getattr(sys.modules.get("torch._inductor.metrics"), name, 0))


def is_compiled_region(event: str) -> bool:
    """Whether a profiler's event of that name is what ``torch.compile`` made."""
    return event.startswith(("Torch-Compiled Region", "## Call CompiledFxGraph"))


def is_guard_check(event: str) -> bool:
    """Whether a profiler's event is torch.compile's look for code that fits the arguments."""
    return event == "TorchDynamo Cache Lookup"


_KERNEL = re.compile(r"(?:graph_\d+_)?((?:cpp|triton)_\w+?)(?:_\d+)?$")


def kernel_name(event: str) -> str:
    """The name of a kernel of inductor's without its numbers; empty for any other event.

    It says which operators were fused (``cpp_fused_mul_silu``), which holds from one version to the
    next; the numbers do not.
    """
    found = _KERNEL.match(event)
    return found.group(1) if found else ""


@contextmanager
def named_kernels() -> Iterator[None]:
    """Have what is compiled meanwhile for a CPU tell the profiler of each of its kernels."""
    try:
        from torch._inductor import config

        config.cpp.enable_kernel_profile  # noqa: B018 - older ones lack it
    except (ImportError, AttributeError):
        yield
        return
    with config.patch({"cpp.enable_kernel_profile": True}):
        yield


def why_not_compiled() -> str:
    """What has ``torch.compile`` run forwards eagerly, and the way out."""
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        if os.environ.get(name, "0") not in ("", "0"):
            return f"{name}={os.environ[name]} in the environment switches it off; unset it"
    config = torch._dynamo.config
    for name in ("disable", "suppress_errors"):
        if getattr(config, name, False):
            return f"torch._dynamo.config.{name} is set; leave it unset while you measure"
    return "every forward ran eagerly; see what dynamo skips with TORCH_LOGS=dynamo,graph_breaks"


def inductor_cache() -> str:
    """The directory of inductor's cache on disk."""
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir
    except ImportError:
        return "inductor's cache directory"
    return cache_dir()


def separate_instruction_sets() -> None:
    """Give a forced instruction set (ATEN_CPU_CAPABILITY) a cache of its own.

    Inductor's keys do not hold it: a kernel that was made under one aborts the process under
    another. A cache that somebody has named is left to them.
    """
    forced = re.sub(r"\W+", "-", os.environ.get("ATEN_CPU_CAPABILITY", ""))
    if forced and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with suppress(ImportError):
            from torch._inductor.runtime.cache_dir_utils import cache_dir

            os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{cache_dir()}-{forced}"


def is_full(error: BaseException) -> bool:
    """Whether it says that memory is full: on a CPU torch has no type of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
