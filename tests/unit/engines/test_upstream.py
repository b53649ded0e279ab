"""The contract with transformers and torch: each test names one thing that we lean on inside them.

``make matrix`` runs this file on every supported version. Where one fails, ``upstream`` is the
place to mend.
"""

from __future__ import annotations

import inspect
import logging
import os
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from perfline.engines import upstream
from perfline.errors import EngineError, NoSharedPrefixes

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


BOTH_WAYS = "use_bidirectional_attention"


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **SMALL)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("symbol", upstream.NEEDED + upstream.NEEDED_FOR_PREFIXES)
def test_the_installed_versions_have(symbol):
    assert upstream.lacking([symbol]) == ""


def test_attention_updates_a_cache_with_keys_values_and_the_layer_s_number(module):
    seen = []

    class Recording(upstream.PrefixCache):
        def update(self, key_states, value_states, layer_idx, *args, **kwargs):
            seen.append((tuple(key_states.shape), tuple(value_states.shape), layer_idx))
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    stack, zeros = module.base_model, torch.zeros(1, 1, 2, 8)
    cache = Recording([upstream.PrefixLayer(zeros, zeros) for _ in stack.layers], keep=True)
    mask = torch.zeros(1, 1, 3, 5).masked_fill_(torch.ones(3, 5).triu(3).bool(), -1e9)
    ids = torch.tensor([[1, 2, 3]])
    arguments = {upstream.cache_argument(stack): cache, "attention_mask": mask}
    stack(input_ids=ids, position_ids=torch.arange(3)[None], use_cache=True, **arguments)
    assert seen == [((1, 1, 3, 8), (1, 1, 3, 8), 0), ((1, 1, 3, 8), (1, 1, 3, 8), 1)]
    assert all(part.own is not None for part in cache.layers)


def test_our_caches_are_transformers_own():
    from transformers.cache_utils import Cache, DynamicLayer

    zeros = torch.zeros(1, 1, 5, 8)
    layer = upstream.PrefixLayer(zeros, zeros)
    assert isinstance(layer, DynamicLayer)
    assert isinstance(upstream.PrefixCache([layer], keep=False), Cache)
    assert isinstance(upstream.OneLayerCache(layer), Cache)
    assert upstream.PrefixCache([layer, layer], keep=False).get_seq_length() == 5
    assert upstream.OneLayerCache(layer).get_seq_length() == 5


def test_stack_and_layers_take_a_cache_by_a_name_that_we_know(module):
    for part in (module.base_model, module.base_model.layers[0]):
        name = upstream.cache_argument(part)
        assert name in inspect.signature(type(part).forward).parameters


def test_the_name_is_the_model_s_own_and_not_the_compiled_forward_s(module):
    layer = module.base_model.layers[0]
    layer.forward = lambda *args, **kwargs: None
    assert upstream.cache_argument(layer) in upstream.CACHE_ARGUMENTS
    del layer.forward


def test_a_model_without_cache_is_told_by_its_name():
    with pytest.raises(NoSharedPrefixes, match=r"Linear of transformers .* takes no cache or past"):
        upstream.cache_argument(nn.Linear(1, 1))


def test_a_4d_mask_is_taken_as_it_is(module):
    ids, open_mask = torch.tensor([[1, 2, 3, 4]]), torch.zeros(1, 1, 4, 4)
    stack = module.base_model
    seen_all = stack(input_ids=ids, attention_mask=open_mask, use_cache=False)[0]
    causal = stack(input_ids=ids, use_cache=False)[0]
    assert not torch.allclose(seen_all[:, 0], causal[:, 0])


def test_the_attention_is_the_config_s_and_can_be_changed_meanwhile(module):
    config = module.config.get_text_config()
    assert upstream.attention_of(config) == "sdpa"
    with upstream.attending(config, "eager"):
        assert upstream.attention_of(config) == "eager"
        assert module(torch.tensor([[1, 2]])).logits.shape == (1, 2, 32)
    assert upstream.attention_of(config) == "sdpa"


@pytest.mark.parametrize(
    ("kind", "config", "found"),
    [
        ("bart", {}, ("is_encoder_decoder", True)),
        ("bart", {"is_encoder_decoder": False, "is_decoder": True}, None),  # its decoder alone
        ("musicgen", {}, ("is_encoder_decoder", True)),
        ("bert", {}, ("is_decoder", False)),
        ("bert", {"is_decoder": True}, None),
        ("bert-generation", {}, ("is_decoder", False)),
        ("roberta", {}, ("is_decoder", False)),
        ("xlm", {}, ("causal", False)),
        ("xlnet", {}, ("attn_type", "bi")),
        ("gpt_neox", {"is_decoder": False}, None),  # it never had a meaning there
        ("llama", {"is_causal": False}, ("is_causal", False)),
        ("gemma3_text", {BOTH_WAYS: True}, (BOTH_WAYS, True)),
        ("gemma3_text", {}, None),
    ],
)
def test_a_config_says_which_model_is_no_decoder_only_lm(kind, config, found):
    made = transformers.AutoConfig.for_model(kind, **config)
    assert upstream.not_decoder_only(made) == found


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("llama", "llama"),
        ("gemma3", "gemma3_text"),
        ("llama4", "llama4"),  # AutoModelForCausalLM takes the language part itself
        ("fuyu", "fuyu"),  # has no tower
        ("gemma3_text", "gemma3_text"),
    ],
)
def test_the_language_part_of_a_multimodal_model_has_a_config_and_a_class_of_its_own(kind, part):
    config = transformers.AutoConfig.for_model(kind)
    found = upstream.language_part(config)
    assert found.model_type == part
    assert (found is config) is (kind == part)
    config.quantization_config = {"quant_method": "x"}
    assert upstream.language_part(config) is config


@pytest.mark.parametrize("changed", [{"is_decoder": True}, {}])
def test_a_token_attends_to_those_after_it_where_the_config_says_so(changed):
    """What ``not_decoder_only`` refuses does that, and what it lets pass does not."""
    config = transformers.AutoConfig.for_model("roberta", **SMALL, **changed)
    kind = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.no_grad():
        one, other = kind(input_ids=ids).logits[:, 0]
    assert torch.allclose(one, other) is (upstream.not_decoder_only(config) is None)


@pytest.mark.parametrize(
    ("kind", "config", "stack"),
    [
        ("llama", SMALL, "model"),
        ("opt", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}, "model.decoder"),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 32}, "transformer"),
    ],
)
def test_layers_are_found_wherever_they_stand(kind, config, stack):
    config = transformers.AutoConfig.for_model(kind, **config)
    made = transformers.AutoModelForCausalLM.from_config(config)
    held, layers = upstream.decoder(made)
    assert held is made.get_submodule(stack)
    assert (len(layers), layers in held.children()) == (2, True)
    with pytest.raises(EngineError, match="Linear holds no list of decoder layers"):
        upstream.decoder(nn.Linear(1, 1))


def test_only_what_reaches_the_output_embedding_has_logits(module):
    ids = torch.tensor([[1, 2, 3]])
    hook = module.get_output_embeddings().register_forward_pre_hook(lambda _, x: (x[0][:, -1:],))
    last = module(ids).logits
    hook.remove()
    torch.testing.assert_close(last, module(ids).logits[:, -1:])


def test_a_cache_tells_the_sizes_of_keys_and_values(module):
    assert upstream.cache_shapes(module, torch.tensor([[1, 2, 3]])) == [(1, 8, 8), (1, 8, 8)]


def test_layers_see_what_their_kind_says():
    made = transformers.AutoConfig.for_model("llama", **SMALL)
    assert upstream.windows(made, 2) == [upstream.FULL, upstream.FULL]
    made = transformers.AutoConfig.for_model("mistral", **SMALL, sliding_window=7)
    assert upstream.windows(made, 2) == [("sliding_attention", 7)] * 2
    made.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(NoSharedPrefixes, match="'linear_attention' are not known"):
        upstream.windows(made, 2)


def test_a_quantizer_that_expands_the_weights_says_so():
    from transformers.quantizers import HfQuantizer

    model = SimpleNamespace(config=SimpleNamespace())
    assert not upstream.expanded(model)
    HfQuantizer.remove_quantization_config(None, model)
    assert upstream.expanded(model)


def test_from_where_on_a_prompt_s_length_changes_its_rotary_frequencies():
    def of(kind, **settings):
        made = transformers.AutoConfig.for_model(kind, **{**SMALL, "pad_token_id": 0, **settings})
        return upstream.steady_positions(made)

    def rope(name, **more):
        return {"rope_parameters": {"rope_type": name, "rope_theta": 10000.0, **more}}

    assert of("llama") is of("gpt2") is of("llama", **rope("linear", factor=2.0)) is None
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    found = of("phi3", original_max_position_embeddings=40, **rope("longrope", **factors))
    assert found == 40
    assert of("llama", max_position_embeddings=64, **rope("dynamic", factor=2.0)) == 64
    layered = {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": ""}}
    old = SimpleNamespace(rope_scaling=layered, max_position_embeddings=7)
    assert upstream.steady_positions(old) == 7


def test_dynamo_counts_graphs_and_breaks():
    torch.compiler.reset()
    before = upstream.dynamo_counts()

    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    torch.compile(broken, backend="eager")(torch.ones(3))
    found = upstream.dynamo_counts() - before
    assert found.graphs == 2
    assert found.graph_breaks == 1


def test_dynamo_raises_at_its_limit_of_recompiles():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    with upstream.fail_at_the_recompile_limit(), torch._dynamo.config.patch(recompile_limit=1):
        compiled(torch.ones(2))
        with pytest.raises(upstream.compile_errors()):
            compiled(torch.ones(3))
    torch.compiler.reset()


def test_a_full_cpu_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert upstream.is_full(caught.value)
    assert not upstream.is_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("event", "kernel"),
    [
        ("graph_1_cpp_fused__unsafe_view_mul_silu_5", "cpp_fused__unsafe_view_mul_silu"),
        ("cpp_fused_add_12", "cpp_fused_add"),
        ("triton_poi_fused_mul_silu_0", "triton_poi_fused_mul_silu"),
        ("triton_red_fused_mean", "triton_red_fused_mean"),
        ("aten::mm", ""),
        ("Torch-Compiled Region: 0/0", ""),
    ],
)
def test_a_kernel_is_known_without_its_numbers(event, kernel):
    assert upstream.kernel_name(event) == kernel


def test_inductor_names_its_kernels_of_a_cpu_meanwhile():
    def fused(x):
        return torch.tanh(x) * 2 + 1

    torch.compiler.reset()
    with upstream.named_kernels():
        compiled = torch.compile(fused)
        compiled(torch.ones(64))
    with torch.profiler.profile() as found:
        compiled(torch.ones(64))
    names = {each.name for each in found.events()}
    assert "cpp_fused_add_mul_tanh" in {upstream.kernel_name(name) for name in names}
    assert any(map(upstream.is_guard_check, names))
    assert not torch._inductor.config.cpp.enable_kernel_profile
    torch.compiler.reset()


def test_inductor_tells_where_its_cache_is(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/some/where")
    assert upstream.inductor_cache() == "/some/where"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, None),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, "here/torchinductor_me-avx2"),
        ({"ATEN_CPU_CAPABILITY": "../x"}, "here/torchinductor_me--x"),
        ({"ATEN_CPU_CAPABILITY": "avx2", "TORCHINDUCTOR_CACHE_DIR": "/own"}, "/own"),
    ],
)
def test_a_forced_instruction_set_has_an_inductor_cache_of_its_own(
    monkeypatch, tmp_path, given, found
):
    """A kernel of avx512 that a process under avx2 found there aborted it, torch 2.13."""
    for name in ("ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that it is as before once the test is over
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "here"))
    monkeypatch.setenv("LOGNAME", "me")
    upstream.separate_instruction_sets()
    now = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    assert now == (str(tmp_path / found) if found and found != "/own" else found)


def test_new_tensors_are_no_news_meanwhile():
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level
    with upstream.untold_tensors():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before


def test_what_is_lacking_is_told_with_the_tested_versions(monkeypatch):
    gone = "transformers.cache_utils:DynamicLayer.gone"
    tested = r"lacks transformers\.cache_utils\.DynamicLayer\.gone; perfline was tested on tr"
    monkeypatch.setattr(upstream, "NEEDED_FOR_PREFIXES", (gone,))
    with pytest.raises(NoSharedPrefixes, match=tested):
        upstream.check_prefixes()
    monkeypatch.setattr(upstream, "NEEDED", ("torch._dynamo:gone",))
    with pytest.raises(EngineError, match=r"torch .* lacks torch\._dynamo\.gone; perfline .* 2\.9"):
        upstream.check()


def test_a_static_cache_is_written_in_place_and_read_at_its_whole_length(module):
    stack, length = module.base_model, 7
    cache = upstream.static_cache(stack, module.config, length)
    named = {upstream.cache_argument(stack): cache, "use_cache": True}
    if upstream.takes_cache_position(stack):
        named["cache_position"] = torch.arange(3)
    with torch.inference_mode():
        stack(input_ids=torch.tensor([[1, 2, 3]]), position_ids=torch.arange(3)[None], **named)
        where = [part.keys.data_ptr() for part in cache.layers]
        assert cache.layers[0].keys.shape == cache.layers[0].values.shape == (1, 1, length, 8)
        one = {**named, "position_ids": torch.tensor([[3]])}
        if "cache_position" in named:
            one["cache_position"] = torch.tensor([3])
        found = stack(input_ids=torch.tensor([[4]]), **one)[0]
        assert [part.keys.data_ptr() for part in cache.layers] == where
        whole = stack(input_ids=torch.tensor([[1, 2, 3, 4]]), use_cache=False)[0]
        torch.testing.assert_close(found[:, -1], whole[:, -1])
        cache.reset()
        assert not cache.layers[0].keys.any()


def test_addresses_are_marked_without_a_guard(module):
    cache = upstream.static_cache(module.base_model, module.config, 7)
    part = upstream.OneLayerCache(cache.layers[0]).layers[0]
    part.lazy_initialization(torch.zeros(1, 1, 0, 8), torch.zeros(1, 1, 0, 8))
    upstream.mark_static_address(part)
    assert part.keys._dynamo_static_input_type == "unguarded"
    assert part.values._dynamo_static_input_type == "unguarded"
