"""The real engine on a random Llama of 3 layers: seconds, because torch itself takes them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.auto import modeling_auto

from perfline.cases import data
from perfline.cases.case import ThroughputSpec
from perfline.engines import hf
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.engines.shared_prefix import SharedPrefixRunner
from perfline.engines.torch_engine import TorchEngine
from perfline.errors import CaseError, DataError, DeviceMemory, EngineError, NoSharedPrefixes
from perfline.measure import throughput
from perfline.tasks.prompts import Prompt
from random_llama import CONFIG, case, traced_only


@pytest.fixture
def model():
    loaded = hf.load(case(), current_device(), None)
    yield loaded
    loaded.close()


def some_prompts(*lengths):
    rng = np.random.default_rng(0)
    return [
        Prompt(f"s/{i}", "s", rng.integers(320, size=n, dtype=np.int64), 5, None)
        for i, n in enumerate(lengths)
    ]


def test_forwards_give_the_model_s_own_logits(model):
    engine = model.engine("eager")
    batch = engine.prepare(some_prompts(40)[0])
    with torch.inference_mode():
        whole = model.module(batch).logits
    torch.testing.assert_close(engine.forward(batch, "all"), whole)
    torch.testing.assert_close(engine.forward(batch, "last"), whole[:, -1:])


def test_read_gives_letter_logits_the_largest_and_the_full_vocabulary_arg_max(model):
    engine = model.engine("eager")
    logits = engine.forward(engine.prepare(some_prompts(12)[0]), "all")
    letters, largest, argmax, text = engine.read(logits)
    row = logits[0, -1]
    assert letters == row[:4].tolist()
    assert largest == row.abs().max()
    assert argmax == int(row.argmax())
    assert text == ""  # no tokenizer under --dummy-weights


@pytest.mark.parametrize("head", ["all", "last"])
def test_flops_are_what_torch_s_own_counter_counts(model, head):
    from torch.utils.flop_counter import FlopCounterMode

    engine, tokens = model.engine("eager"), 48
    batch = engine.prepare(some_prompts(tokens)[0])
    with FlopCounterMode(display=False) as counter:
        engine.forward(batch, head)
    # torch counts the square of the attention, perfline the causal triangle, n(n+1)/2 of n^2;
    # on a CPU it does not see into the fused kernel at all.
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for op, count in counts.items() if "attention" in str(op))
    linear = counter.get_total_flops() - attention
    triangle = 4 * 64 * 3 * tokens * (tokens + 1) / 2
    # (transformers 4.57 makes the rotary angles by a small product of its own.)
    assert engine.flops(tokens, head) == pytest.approx(linear + triangle, rel=2e-4)
    assert attention in (0, 4 * 64 * 3 * tokens * tokens)


def test_flops_of_a_mixture_of_experts_are_not_guessed():
    config = {
        **CONFIG,
        "model_type": "mixtral",
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    }
    loaded = hf.load(case(config=config), current_device(), None)
    expert_matrices = [
        p for n, p in loaded.module.named_parameters() if "experts" in n and p.ndim == 3
    ]
    if not expert_matrices:
        pytest.skip("this transformers keeps experts as nn.Linear")
    assert loaded.engine("eager").flops(10, "all") is None
    loaded.close()


def test_random_weights_are_built_in_the_target_dtype():
    loaded = hf.load(case("bf16"), current_device(), None)
    assert {p.dtype for p in loaded.module.parameters()} == {torch.bfloat16}
    assert loaded.positions == 256
    assert loaded.vocabulary == 320
    loaded.close()


def test_random_weights_need_the_model_s_config():
    with pytest.raises(CaseError, match=r"x\.yaml: key 'model\.config' is missing"):
        hf.load(case(config=None), current_device(), None)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_compiled_answers_are_the_eager_ones_and_engines_switch(scope):
    loaded = hf.load(case(scope=scope), current_device(), None)
    prompts = some_prompts(30, 64, 31)
    eager, compiled = loaded.engine("eager"), loaded.engine("inductor")
    before = run_pass(eager, prompts, "all").answers
    inductor = run_pass(compiled, prompts, "all").answers
    np.testing.assert_allclose(inductor.letter_logits, before.letter_logits, atol=1e-5)
    assert inductor.argmax.tolist() == before.argmax.tolist()
    counts = compiled.compile_counts()
    assert (counts.graphs, counts.graph_breaks) == (1, 0)
    assert counts.cache in ("cold", "warm")
    again = run_pass(eager, prompts, "all").answers
    assert (again.letter_logits == before.letter_logits).all()
    assert eager.compile_counts().graphs == 0
    layers = eager.layers
    assert all("forward" not in vars(layer) for layer in layers)  # eager runs the model's own code
    loaded.close()


def test_the_recompile_limit_is_an_error_and_not_silent_eager_code(monkeypatch):
    traced_only(monkeypatch)
    loaded = hf.load(case(dynamic=False), current_device(), None)
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(EngineError, match=r"case 'random': torch\.compile failed .* 21 tokens"),
    ):
        run_pass(loaded.engine("inductor"), some_prompts(20, 21), "all")
    loaded.close()


def test_out_of_memory_says_how_much_and_what_to_lower(model, monkeypatch):
    engine = model.engine("eager")

    def full(**_):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(model.module.base_model, "forward", full)
    with pytest.raises(DeviceMemory, match=r"forward of 9 tokens: out of memory on .*20\.00 GiB"):
        engine.forward(engine.prepare(some_prompts(9)[0]), "all")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "cohere", "logit_scale": 0.25},
        {"model_type": "gemma2", "final_logit_softcapping": 0.05, "head_dim": 16},
        {"model_type": "granite", "logits_scaling": 8.0},
    ],
    ids=lambda config: config["model_type"],
)
@pytest.mark.filterwarnings("ignore:transformers has no sdpa for gemma2")
def test_logits_that_are_more_than_a_product_are_the_model_s_own(config):
    loaded = hf.load(case(config={**CONFIG, **config}), current_device(), None)
    engine, (prompt,) = loaded.engine("eager"), some_prompts(20)
    (own,) = engine.untouched(engine.prepare(prompt))
    for head in ("all", "last"):
        torch.testing.assert_close(engine.forward(engine.prepare(prompt), head)[0, -1], own)
    runner = SharedPrefixRunner(engine)
    found = runner.run([prompt], runner.plan([prompt])).answers
    np.testing.assert_allclose(found.letter_logits[0], own[:4], atol=1e-5)
    product = engine.head(engine.stack(engine.prepare(prompt))[0])[0, -1]
    assert not torch.allclose(product, own)
    loaded.close()


def test_a_class_without_sdpa_runs_its_eager_attention_and_says_so():
    config = {**CONFIG, "model_type": "gemma2", "head_dim": 16}
    said = "transformers has no sdpa for gemma2: its eager attention runs"
    with pytest.warns(UserWarning, match=said):
        loaded = hf.load(case(config=config), current_device(), None)
    assert loaded.attention == "eager"
    loaded.close()


def test_a_model_that_runs_otherwise_here_is_refused_with_both_numbers(monkeypatch):
    logits = TorchEngine.logits
    monkeypatch.setattr(TorchEngine, "logits", lambda *a, **k: logits(*a, **k) * 1.001)
    said = r"LlamaForCausalLM are off by 0\.001 of the largest .* \(allowed 0\.0001\)"
    with pytest.raises(EngineError, match=said):
        hf.load(case(), current_device(), None)


@pytest.mark.parametrize("name", ["eager", "inductor"])
def test_a_damaged_fast_path_gives_way_to_the_plain_one(model, monkeypatch, name):
    from perfline.engines.prefix_forward import PrefixForward

    mask = PrefixForward._mask
    monkeypatch.setattr(PrefixForward, "_mask", lambda *a: mask(*a) * 0)
    runner = SharedPrefixRunner(model.engine(name))
    with pytest.raises(NoSharedPrefixes, match=r"after a prefix are off by \d.* of the largest"):
        runner.warm_up(runner.plan(some_prompts(20, 30)))


def test_a_checkpoint_that_transformers_cannot_read_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(EngineError, match=r"case 'random': loading .* failed: ") as caught:
        hf.load(case(), current_device(), tmp_path)
    assert "\n" not in str(caught.value)


def test_close_frees_the_weights(model):
    import gc
    import weakref

    weights = weakref.ref(next(model.module.parameters()))
    model.close()
    gc.collect()
    assert weights() is None


def test_threads_are_the_case_s(model):
    assert torch.get_num_threads() == 1
    assert dataclasses.replace(model.case.engine, cpu_threads=None).cpu_threads is None


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the embedded model's checkpoint."""
    import shutil

    from perfline.cases.data import PACKAGED_DATA

    target = tmp_path / "hf"
    shutil.copytree(PACKAGED_DATA / "tiny_mmlu" / "tiny_hf", target)
    return target


def test_a_checkpoint_with_a_missing_tensor_is_not_filled_with_random_numbers(checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"1 tensors .* missing .*layers\.2\.mlp\.up_proj"):
        hf.load(case(), current_device(), checkpoint)


def test_a_checkpoint_does_not_choose_the_attention(checkpoint):
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace("{", '{"_attn_implementation": "eager",', 1))
    with pytest.raises(
        EngineError, match=r"config\.json: sets the attention to 'eager', .* 'sdpa'"
    ):
        hf.load(case(), current_device(), checkpoint)


@pytest.mark.parametrize(
    ("file", "text"),
    [("tokenizer.json", "[]"), ("tokenizer.json", "{"), ("config.json", '{"model_type": 3}')],
)
def test_broken_files_of_a_checkpoint_are_one_line(checkpoint, file, text):
    (checkpoint / file).write_text(text)
    with pytest.raises(EngineError, match=r"case 'random': loading .* failed: ") as caught:
        hf.load(case(), current_device(), checkpoint)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_may_know_tokens_that_the_model_has_no_row_for(checkpoint):
    config = checkpoint / "tokenizer.json"
    text = config.read_text()
    assert '"added_tokens": [' in text
    extra = (
        '"added_tokens": [{"id": 740, "content": "<extra>", "single_word": false, "lstrip": false,'
        ' "rstrip": false, "normalized": false, "special": true},'
    )
    config.write_text(text.replace('"added_tokens": [', extra, 1))
    model = hf.load(case(), current_device(), checkpoint)
    assert model.vocabulary == 740
    model.close()


def rewritten(checkpoint, change):
    path = checkpoint / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_tensors_that_the_model_does_not_take_are_told(checkpoint):
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(EngineError, match=r"9 tensors of the file are not taken .* model.layers.3"):
        hf.load(case(), current_device(), checkpoint)


def test_scales_that_nobody_would_apply_are_told(checkpoint):
    name = "model.layers.0.mlp.down_proj.weight_scale_inv"
    rewritten(checkpoint, lambda held: held | {name: torch.ones(1)})
    with pytest.raises(EngineError, match=rf"1 tensors of the file .*, such as {name}: config"):
        hf.load(case(), current_device(), checkpoint)


def with_config(checkpoint, **changes):
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


def test_a_quantised_checkpoint_is_measured_as_what_it_is(checkpoint):
    """Timed as "fp16, real weights", it would be held against figures of another model."""
    scheme = {"quant_method": "gptq", "bits": 4}
    with_config(checkpoint, quantization_config=scheme)
    with pytest.raises(
        DataError,
        match=r"config\.json: says that the weights are quantised \(gptq, 4 bits\), and the case "
        r"that they are fp32; set its model\.precision to checkpoint$",
    ):
        hf.load(case(), current_device(), checkpoint)
    with pytest.raises(EngineError, match=r"as checkpoint failed: .*GPTQ.*(optimum|gptqmodel)"):
        hf.load(case("checkpoint"), current_device(), checkpoint)  # whose backend is not here


def test_what_no_quantizer_made_has_a_precision(checkpoint):
    with pytest.raises(DataError, match=r"config\.json: has no quantization_config, .* fp32, fp16"):
        hf.load(case("checkpoint"), current_device(), checkpoint)
    with pytest.raises(CaseError, match=r"x\.yaml: model\.precision is checkpoint, and --dummy"):
        hf.load(case("checkpoint"), current_device(), None)


@pytest.mark.parametrize(
    ("kind", "scheme", "largest"),
    [("int", "pack-quantized", 127), ("float", "naive-quantized", 448)],
)
def test_a_quantizer_s_weights_answer_every_way(checkpoint, kind, scheme, largest):
    """One that is decompressed in a hook of the model's first forward, by 8 bits a weight."""
    pytest.importorskip("compressed_tensors", reason="no quantizer is installed")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": {**weights, "dynamic": False}}}
    told = {"config_groups": groups, "ignore": ["lm_head"], "format": scheme}
    whole = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    apply_quantization_config(whole, QuantizationConfig.model_validate(told))
    for module in whole.modules():
        if hasattr(module, "weight_scale"):
            scale = module.weight.abs().amax(1, keepdim=True).clamp(min=1e-4) / largest
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(whole)
    compressor.compress_model(whole)
    whole.save_pretrained(checkpoint)
    compressor.update_config(checkpoint)

    model = hf.load(case("checkpoint"), current_device(), checkpoint)
    assert model.quantization == f"compressed-tensors, {scheme}"
    assert model.unshared == ""
    prompts = some_prompts(9, 14)
    plain = run_pass(model.engine("eager"), prompts, "all").answers
    runner = SharedPrefixRunner(model.engine("eager"))
    shared = runner.run(prompts, runner.plan(prompts)).answers
    np.testing.assert_allclose(shared.letter_logits, plain.letter_logits, atol=1e-3)
    model.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"model_type": "roberta"},
            r"config\.json: 'is_decoder' is false, so a token attends to those after it: this "
            r"roberta is no decoder-only LM, .* change the key if the checkpoint was trained as",
        ),
        (
            {"model_type": "bart"},
            r"config\.json: 'is_encoder_decoder' is true: this bart is no decoder-only LM, .* "
            r"choose a checkpoint without an encoder",
        ),
        ({"is_causal": False}, r"config\.json: 'is_causal' is false, so a token attends"),
    ],
    ids=["roberta", "bart", "two-way-llama"],
)
def test_what_is_no_decoder_only_lm_is_refused_before_its_weights_are_read(
    checkpoint, monkeypatch, change, told
):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.delattr(transformers.AutoModelForCausalLM, "from_pretrained")
    with pytest.raises(EngineError, match=told):
        hf.load(case(), current_device(), checkpoint)
    with pytest.raises(EngineError, match=told):
        hf.attention_for(case(), checkpoint)


def test_an_attention_whose_package_is_absent_is_refused_before_the_weights_are_read(
    checkpoint, monkeypatch
):
    monkeypatch.setattr(hf, "find_spec", lambda name: None)
    model = dataclasses.replace(case().model, attention="flash_attention_2")
    flash = dataclasses.replace(case(), model=model)
    with pytest.raises(EngineError, match=r"x\.yaml: model\.attention is .* or set sdpa$"):
        hf.attention_for(flash, checkpoint)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint):
    with_config(checkpoint, num_attention_heads=2)
    with pytest.raises(
        EngineError,
        match=r"mismatched in the checkpoint, such as model\.layers\.0\..* stored, .* by ",
    ):
        hf.load(case(), current_device(), checkpoint)


def test_random_weights_of_an_encoder_are_refused_too():
    with pytest.raises(EngineError, match=r"x\.yaml: model\.config: 'is_decoder' is false"):
        hf.load(case(config={**CONFIG, "model_type": "bert"}), current_device(), None)


TEXT = {key: n for key, n in CONFIG.items() if key not in ("model_type", "tie_word_embeddings")}
TEXT |= {"vocab_size": 740, "head_dim": 16, "pad_token_id": 0, "initializer_range": 0.1}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
TOWER |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
MULTIMODAL = {
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma4": {
        "text_config": {**TEXT, "global_head_dim": 16, "hidden_size_per_layer_input": 0}
        | {"vocab_size_per_layer_input": 740, "num_kv_shared_layers": 0},
        "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
    },
    "got_ocr2": {"vision_config": {**TOWER, "mlp_dim": 48, "global_attn_indexes": [0]}},
}


@pytest.fixture
def multimodal(request, checkpoint):
    """A tiny multimodal checkpoint, and the whole model of it."""
    if request.param not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {request.param}")
    torch.manual_seed(0)
    parts = {"text_config": TEXT, "vision_config": TOWER} | MULTIMODAL[request.param]
    config = transformers.AutoConfig.for_model(request.param, **parts)
    whole = transformers.AutoModelForCausalLM.from_config(config).eval()
    whole.save_pretrained(checkpoint)
    return checkpoint, whole


@pytest.mark.parametrize("multimodal", MULTIMODAL, indirect=True)
def test_of_a_multimodal_checkpoint_the_language_part_alone_is_loaded(multimodal, caplog, capsys):
    path, whole = multimodal
    with pytest.warns(UserWarning, match=r"tensors of other towers are left out, such as "):
        loaded = hf.load(case(), current_device(), path)
    assert "LOAD REPORT" not in caplog.text + capsys.readouterr().err  # a line a tensor
    assert type(loaded.module) is not type(whole)
    assert not any("vision" in name or "tower" in name for name, _ in loaded.module.named_modules())
    ids = torch.arange(5, 65)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(ids).logits, whole(input_ids=ids).logits)
    loaded.close()


@pytest.mark.parametrize("multimodal", ["gemma3"], indirect=True)
def test_a_multimodal_checkpoint_whose_language_part_lacks_a_tensor_is_refused(multimodal):
    path, _ = multimodal

    def without(held):
        return {n: t for n, t in held.items() if "layers.2.mlp.up_proj" not in n or "vision" in n}

    rewritten(path, without)
    with pytest.raises(EngineError, match=r"1 tensors .* missing .*layers\.2\.mlp\.up_proj"):
        hf.load(case(), current_device(), path)


@pytest.mark.parametrize("multimodal", ["gemma3"], indirect=True)
def test_random_weights_of_a_multimodal_model_are_those_of_its_language_part(multimodal):
    config = json.loads((multimodal[0] / "config.json").read_text())
    loaded = hf.load(case(config=config), current_device(), None)
    assert type(loaded.module).__name__ == "Gemma3ForCausalLM"
    loaded.close()


def test_another_tower_is_a_notice(checkpoint):
    tower = {"visual.blocks.0.weight": torch.ones(2), "model.vision.proj.weight": torch.ones(2)}
    rewritten(checkpoint, lambda held: held | tower)
    with pytest.warns(UserWarning, match=r"2 tensors of other towers are left out, such as model"):
        hf.load(case(), current_device(), checkpoint).close()


def sharded(checkpoint, change=lambda held: held):
    """The same tensors in two files and an index; the second file's as ``change`` has them."""
    held = load_file(checkpoint / "model.safetensors")
    first = sorted(held)[:10]
    files = {
        "model-1.safetensors": {name: held[name] for name in first},
        "model-2.safetensors": change({n: t for n, t in held.items() if n not in first}),
    }
    for file, tensors in files.items():
        save_file(tensors, checkpoint / file, metadata={"format": "pt"})
    places = {name: file for file, tensors in files.items() for name in tensors}
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    return held


def weights_of(checkpoint):
    loaded = hf.load(case(), current_device(), checkpoint)
    held = {name: tensor.clone() for name, tensor in loaded.module.named_parameters()}
    loaded.close()
    return held


def test_transformers_reads_a_single_file_before_an_index_as_data_has_it(checkpoint):
    held = sharded(checkpoint, lambda held: {n: torch.zeros_like(t) for n, t in held.items()})
    name = "model.layers.1.mlp.up_proj.weight"
    assert data.left_aside(checkpoint) == ["model-1.safetensors", "model-2.safetensors"]
    assert weights_of(checkpoint)[name].equal(held[name])
    (checkpoint / "model.safetensors").unlink()
    assert data.left_aside(checkpoint) == []
    assert not weights_of(checkpoint)[name].any()


def test_an_index_of_some_of_the_shards_names_the_others(checkpoint):
    sharded(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    path = checkpoint / "model.safetensors.index.json"
    places = json.loads(path.read_text())["weight_map"]
    places = {name: file for name, file in places.items() if file == "model-1.safetensors"}
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(EngineError, match=r"are missing in .* \(model-2\.safetensors beside them"):
        hf.load(case(), current_device(), checkpoint)


def test_links_are_followed(checkpoint, tmp_path):
    held = weights_of(checkpoint)
    for path in list(checkpoint.iterdir()):
        path.rename(tmp_path / f"blob-{path.name}")
        path.symlink_to(tmp_path / f"blob-{path.name}")
    data.check_weights(checkpoint)
    again = weights_of(checkpoint)
    assert held.keys() == again.keys()
    assert all(held[name].equal(again[name]) for name in held)


def test_a_row_that_is_no_number_is_refused_before_it_answers_anything(checkpoint):
    def damaged(held):
        held["model.embed_tokens.weight"][700, 3] = float("nan")
        return held

    rewritten(checkpoint, damaged)
    with pytest.raises(EngineError, match=r"1 numbers of model\.embed_tokens\.weight are NaN or"):
        hf.load(case(), current_device(), checkpoint)


def test_what_fp16_cannot_hold_says_what_can(checkpoint):
    def large(held):
        held["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
        return {name: tensor.float() for name, tensor in held.items()}

    rewritten(checkpoint, large)
    with pytest.raises(EngineError, match=r"stored as F32, .* set model\.precision to bf16"):
        hf.load(case("fp16"), current_device(), checkpoint)


def test_rounding_at_the_load_is_a_notice(checkpoint):
    rewritten(checkpoint, lambda held: {name: tensor.float() for name, tensor in held.items()})
    with pytest.warns(UserWarning, match=r"are stored as F32, and rounded to bf16"):
        hf.load(case("bf16"), current_device(), checkpoint).close()


@pytest.mark.filterwarnings("error")
def test_tied_and_untied_heads_are_what_the_file_says(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    name, head = "model.embed_tokens.weight", "lm_head.weight"
    assert config["tie_word_embeddings"]
    own = load_file(checkpoint / "model.safetensors")[name].roll(1, 0).clone()

    def head_of():
        loaded = hf.load(case(), current_device(), checkpoint)
        found = loaded.engine("eager").head.weight.clone()
        loaded.close()
        return found

    rewritten(checkpoint, lambda held: held | {head: own})  # both, and they differ
    assert head_of().equal(own)
    rewritten(checkpoint, lambda held: {k: t for k, t in held.items() if k != name})
    assert head_of().equal(own)  # the head alone
    config["tie_word_embeddings"] = False
    (checkpoint / "config.json").write_text(json.dumps(config))
    rewritten(checkpoint, lambda held: {k: t for k, t in held.items() if k != head} | {name: own})
    with pytest.raises(EngineError, match=r"1 tensors .* missing .* lm_head\.weight"):
        head_of()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run_and_said_in_one_line(checkpoint, file):
    path, kind = checkpoint / file, {"config.json": "AutoConfig"}.get(file, "AutoTokenizer")
    (checkpoint / "evil.py").write_text("raise SystemExit('run')")
    evil = {"auto_map": {kind: "evil.Evil" if file == "config.json" else ["evil.Evil", None]}}
    evil |= {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "Evil"}
    path.write_text(json.dumps(json.loads(path.read_text()) | evil))
    with pytest.raises(EngineError, match=r"never run") as caught:
        hf.load(case(), current_device(), checkpoint)
    assert "\n" not in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize("kind", [ZeroDivisionError, RuntimeError, torch.linalg.LinAlgError])
def test_what_a_model_s_own_code_raises_is_one_line(model, monkeypatch, kind):
    def failing(**_):
        raise kind("of its own\nand more")

    monkeypatch.setattr(model.module.base_model, "forward", failing)
    with pytest.raises(EngineError) as caught:
        model.engine("eager").forward(torch.zeros((1, 9), dtype=torch.int64), "all")
    said = f"case 'random': eager failed on a forward of 9 tokens: {kind.__name__}: of its own; see"
    assert str(caught.value).startswith(said)
    runner = SharedPrefixRunner(model.engine("eager"))
    with pytest.raises(NoSharedPrefixes, match=rf"does not run after .* {kind.__name__}: of its"):
        runner.warm_up(runner.plan(some_prompts(20)))


def broken_in_every_layer(monkeypatch):
    """A graph break in each layer, as a print or a data-dependent branch makes one."""
    from transformers.models.llama import modeling_llama

    kind = modeling_llama.LlamaMLP
    forward = kind.forward

    def breaking(self, x):
        torch._dynamo.graph_break()
        return forward(self, x)

    monkeypatch.setattr(kind, "forward", breaking)


@pytest.mark.parametrize("before", ["nothing", "shared prefixes", "plain"])
def test_what_ran_before_changes_no_count_of_the_throughput(monkeypatch, before):
    traced_only(monkeypatch)
    broken_in_every_layer(monkeypatch)
    loaded = hf.load(case(), current_device(), None)
    engine, asked = loaded.engine("inductor"), some_prompts(20, 24, 30)
    if before == "shared prefixes":
        runner = SharedPrefixRunner(engine)
        runner.warm_up(runner.plan(asked))
    elif before == "plain":
        run_pass(engine, asked, "last")
    ready = throughput.make_ready(engine, asked, ThroughputSpec(sample=3, min_round_s=1e-6))
    counts = ready.first + ready.later
    assert (counts.graphs, counts.graph_breaks) == (3, 4)
    assert engine.not_compiled() == ""
    loaded.close()


@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_an_engine_that_compiled_nothing_says_why(model, monkeypatch, name):
    engine = model.engine("inductor")
    assert engine.not_compiled().endswith("TORCH_LOGS=dynamo,graph_breaks")
    monkeypatch.setenv(name, "1")
    assert engine.not_compiled() == (
        f"torch.compile compiled nothing: {name}=1 in the environment switches it off; unset it"
    )
    assert model.engine("eager").not_compiled() == ""
    monkeypatch.delenv(name)
    with torch._dynamo.config.patch(suppress_errors=True):
        assert "torch._dynamo.config.suppress_errors is set" in engine.not_compiled()
