"""Cases: every published setting has its place, and every mistake gets one clear line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from perfline.cases.case import Case, ParallelSpec, find_cases, load_case, load_cases
from perfline.cases.data import PACKAGED_DATA
from perfline.errors import CaseError

MINIMAL = """\
case: mine
model:
  case_dir: mine_mmlu
  weight_dir: mine_hf
  precision: bf16
  nominal_parameters: 1e9
"""


def write(directory: Path, text: str, name: str = "mine") -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(directory: Path, text: str) -> str:
    path = write(directory, text)
    with pytest.raises(CaseError) as caught:
        load_case(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_adding_a_model_is_adding_one_yaml_file(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)

    (case,) = load_cases(["mine"], [tmp_path])

    assert (case.id, case.title) == ("mine", "mine")
    assert (case.model.precision, case.model.nominal_parameters) == ("bf16", 1e9)
    assert (case.mmlu.few_shots, case.mmlu.max_prompt_tokens) == (5, 2048)
    assert (case.engine.mode, case.engine.scope) == ("default", "layer")
    assert case.gates.throughput_margin_fraction == 0.02
    assert case.source == tmp_path / "mine.yaml"
    assert set(find_cases(tmp_path)) == {"deepseek-7b", "llama3-8b", "mine", "tiny"}


@pytest.mark.parametrize(
    ("name", "hub_id", "folder", "weights", "bos", "parameters", "precision"),
    [
        (
            "llama3-8b",
            "meta-llama/Meta-Llama-3-8B",
            "llama3_8b_mmlu",
            "llama3_8b_hf",
            False,
            8e9,
            "fp16",
        ),
        (
            "deepseek-7b",
            "deepseek-ai/deepseek-llm-7b-base",
            "deepseek_7b_mmlu",
            "deepseek_7b_hf",
            True,
            7e9,
            "fp16",
        ),
        ("tiny", None, "tiny_mmlu", "tiny_hf", "tokenizer", 1.03e6, "fp32"),
    ],
)
def test_packaged_case_carries_its_published_settings(
    name: str,
    hub_id: str | None,
    folder: str,
    weights: str,
    bos: object,
    parameters: float,
    precision: str,
) -> None:
    (case,) = load_cases([name])

    model = case.model
    assert (model.hub_id, model.case_dir, model.weight_dir) == (hub_id, folder, weights)
    assert (model.bos, model.nominal_parameters, model.precision) == (bos, parameters, precision)
    assert (case.mmlu.mmlu_dir, case.mmlu.few_shots) == ("mmlu_dataset/data", 5)
    assert (case.mmlu.max_prompt_tokens, case.mmlu.scoring) == (2048, "full-vocab")
    assert (case.engine.compiler, case.engine.dynamic, case.engine.batch_size) == (
        "inductor",
        True,
        1,
    )


@pytest.mark.parametrize(
    ("name", "parameters"), [("llama3-8b", 8_030_261_248), ("deepseek-7b", 6_910_365_696)]
)
def test_config_has_the_architecture_s_number_of_parameters(name: str, parameters: int) -> None:
    config = load_cases([name])[0].model.config
    assert config is not None
    size = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, head = size["hidden_size"], size["hidden_size"] // size["num_attention_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * head * size["num_key_value_heads"]
    layer = attention + 3 * hidden * size["intermediate_size"] + 2 * hidden

    total = 2 * size["vocab_size"] * hidden + size["num_hidden_layers"] * layer + hidden

    assert total == parameters


def test_tiny_s_config_is_that_of_its_checkpoint() -> None:
    path = PACKAGED_DATA / "tiny_mmlu" / "tiny_hf" / "config.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there: run scripts/make_tiny.py")
    config = load_cases(["tiny"])[0].model.config
    assert config is not None
    trained = json.loads(path.read_text())

    assert {key: trained[key] for key in config} == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "precision:",
            "precison:",
            "key 'model.precison' is not known; did you mean 'model.precision'?",
        ),
        (
            "case:",
            "xyzzy: 1\ncase:",
            "key 'xyzzy' is not known (known: case, title, model, mmlu, engine, parallel, "
            "throughput, decode, gates, fidelity, fingerprint, compare, engines, tasks)",
        ),
        ("case_dir: mine_mmlu", "hub_id: a/b", "key 'model.case_dir' is missing (expected text)"),
        (
            "precision: bf16",
            "precision: fp8",
            "key 'model.precision' is \"fp8\" (expected fp32, fp16, bf16 or checkpoint); did you "
            "mean 'fp32'?",
        ),
        (
            "precision: bf16",
            "precision:",
            "key 'model.precision' is empty (expected fp32, fp16, bf16 or checkpoint)",
        ),
        (
            "precision: bf16",
            "precision: bf16\n  bos: 1",
            "key 'model.bos' is 1 (expected true, false or tokenizer)",
        ),
        (
            "precision: bf16",
            "precision: bf16\n  attention: ''",
            "key 'model.attention' is empty (expected text)",
        ),
        (
            "precision: bf16",
            "precision: bf16\n  config: llama",
            "key 'model.config' is \"llama\" (expected a mapping of keys to values or null)",
        ),
        (
            "precision: bf16",
            "precision: bf16\n  config: {hidden_size: 8}",
            "key 'model.config.model_type' is missing (expected text such as 'llama')",
        ),
        (
            "1e9",
            "true",
            "key 'model.nominal_parameters' is true (expected a number)",
        ),
        ("1e9", "0", "key 'model.nominal_parameters' is 0 (expected a number above 0)"),
        (
            "1e9",
            ".inf",
            "key 'model.nominal_parameters' is Infinity (expected a number from -1e+30 to 1e+30)",
        ),
        (
            "mine_hf",
            "/weights",
            "key 'model.weight_dir' is \"/weights\" (expected a relative path without '..')",
        ),
        (
            "mine_hf",
            "a/../../b",
            "key 'model.weight_dir' is \"a/../../b\" (expected a relative path without '..')",
        ),
        (
            "case: mine",
            "case: mine\nmmlu: {few_shots: 5.0}",
            "key 'mmlu.few_shots' is 5.0 (expected a whole number)",
        ),
        (
            "case: mine",
            "case: mine\nmmlu: {few_shots: -1}",
            "key 'mmlu.few_shots' is -1 (expected a whole number at least 0)",
        ),
        (
            "case: mine",
            "case: mine\nmmlu: [1]",
            "key 'mmlu' is [1] (expected a mapping of keys to values)",
        ),
        (
            "case: mine",
            "case: mine\nengine: {batch_size: true}",
            "key 'engine.batch_size' is true (expected 1)",
        ),
        (
            "case: mine",
            "case: mine\ngates: {accuracy_alpha: 1}",
            "key 'gates.accuracy_alpha' is 1 (expected a number below 1)",
        ),
        (
            "case: mine",
            "case: mine\ncase: mine",
            "is not valid YAML: line 2, column 1: key 'case' stands twice",
        ),
        (
            "case: mine",
            "case: mine\ntasks: []",
            "key 'tasks' names no task (expected a task's name, such as mmlu, or a file below the "
            "case's, such as tasks/mine.yaml)",
        ),
        (
            "case: mine",
            "case: mine\ntasks: [../own.yaml]",
            "key 'tasks' names '../own.yaml' (expected a task's name, such as mmlu, or a file "
            "below the case's, such as tasks/mine.yaml)",
        ),
        (
            "case: mine",
            "case: mine\ntasks: [mmlu, a/mmlu.yaml]",
            "key 'tasks' is mmlu, a/mmlu.yaml (expected each name once)",
        ),
        (
            "case: mine",
            "case: mine\ntasks: [mmlu, ceval]\nparallel: {tensor: 2}",
            "key 'tasks' names 2 (expected one where parallel.tensor splits the model)",
        ),
        ("case: mine", "case: yours", "key 'case' is 'yours' (expected 'mine', the file's name)"),
        (
            "  case_dir",
            " case_dir",
            "is not valid YAML: line 4, column 13: mapping values are not allowed here",
        ),
    ],
)
def test_a_mistake_gets_one_line_that_names_the_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in MINIMAL
    assert refusal(tmp_path, MINIMAL.replace(old, new, 1)) == message


@pytest.mark.parametrize("name", ["Mine", "mine-dummy", "-mine", "m" * 31])
def test_an_id_that_cannot_name_a_baseline_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, MINIMAL.replace("case: mine", f"case: {name}"), name)
    with pytest.raises(CaseError, match=f"key 'case' is '{name}' .expected .*not ending in -dummy"):
        load_case(path)


def test_an_empty_or_undecodable_or_absent_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "") == ("holds null (expected a mapping of keys to values)")
    (tmp_path / "mine.yaml").write_bytes(b"case: \xff")
    with pytest.raises(CaseError, match=r"mine\.yaml: is not UTF-8 text \(byte 6\)"):
        load_case(tmp_path / "mine.yaml")
    with pytest.raises(CaseError, match=r"none\.yaml: cannot be read: No such file"):
        load_case(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["8.0e9", "8e9", "8e+9", "8000000000", "8_000_000_000.0"])
def test_a_number_is_read_however_it_is_written(tmp_path: Path, text: str) -> None:
    case = load_case(write(tmp_path, MINIMAL.replace("1e9", text)))
    assert case.model.nominal_parameters == 8e9
    assert isinstance(case.model.nominal_parameters, float)


def test_a_python_tag_is_not_run(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL.replace("mine_hf", "!!python/object/apply:os.getcwd []"))
    assert "could not determine a constructor" in message


def test_the_same_id_in_two_places_names_both(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL, "tiny")
    with pytest.raises(CaseError, match="case 'tiny' stands in two files") as caught:
        find_cases(tmp_path)
    assert str(path) in str(caught.value)
    assert str(Path("cases", "tiny.yaml")) in str(caught.value)


def test_an_unknown_case_or_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="case 'llama-8b' is not known; did you mean 'llama3-8b'"):
        load_cases(["llama-8b"])
    with pytest.raises(CaseError, match="nowhere: no such directory of cases"):
        find_cases(tmp_path / "nowhere")


def replaced(case: Case, section: str, **changes: object) -> Case:
    new = dataclasses.replace(getattr(case, section), **changes)
    return dataclasses.replace(case, **{section: new})


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("model", {"precision": "fp32"}),
        ("model", {"bos": True}),
        ("model", {"config": None}),
        ("mmlu", {"few_shots": 4}),
        ("mmlu", {"scoring": "letters"}),
        ("engine", {"mode": "reduce-overhead"}),
        ("engine", {"scope": "model"}),
        ("throughput", {"sample": 32}),
        ("throughput", {"head": "last"}),
    ],
)
def test_the_digest_moves_with_what_changes_the_numbers(
    section: str, changes: dict[str, object]
) -> None:
    (case,) = load_cases(["llama3-8b"])
    assert replaced(case, section, **changes).digest() != case.digest()


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("model", {"hub_id": None, "case_dir": "x", "weight_dir": "y"}),
        ("mmlu", {"mmlu_dir": "z"}),
        ("throughput", {"rounds": 99, "min_round_s": 9.0}),
        ("gates", {"accuracy_alpha": 0.5}),
    ],
)
def test_the_digest_ignores_places_rounds_and_limits(
    section: str, changes: dict[str, object]
) -> None:
    (case,) = load_cases(["llama3-8b"])
    assert replaced(case, section, **changes).digest() == case.digest()


def test_the_digest_tells_which_task_is_timed() -> None:
    case = load_cases(["tiny"])[0]
    more = dataclasses.replace(case, tasks=("mmlu", "tasks/own.yaml"))
    other = dataclasses.replace(case, tasks=("tasks/own.yaml", "mmlu"))
    assert more.task_names == ("mmlu", "own")
    assert more.digest() == case.digest()
    assert other.digest() != case.digest()


def test_tasks_of_a_command_line_are_those_of_a_file_for_the_digest() -> None:
    (case,) = load_cases(["tiny"])
    named = dataclasses.replace(case, tasks=("mmlu", "tasks/sums.yaml"))
    assert named.with_tasks(["sums"], "--tasks").tasks == ("tasks/sums.yaml",)
    more = case.with_tasks(["mmlu", "ceval"], "--tasks")
    assert more.task_names == ("mmlu", "ceval")
    assert more.digest() == case.digest()
    other = case.with_tasks(["ceval"], "--tasks")
    assert other.digest() == dataclasses.replace(case, tasks=("ceval",)).digest() != case.digest()


def test_several_tasks_of_a_command_line_are_refused_where_the_model_is_split() -> None:
    (case,) = load_cases(["tiny"])
    split = dataclasses.replace(case, parallel=ParallelSpec(tensor=2))
    assert split.with_tasks(["ceval"], "--tasks").tasks == ("ceval",)
    with pytest.raises(CaseError, match=r"^case 'tiny': --tasks names 2 \(expected one where"):
        split.with_tasks(["mmlu", "ceval"], "--tasks")


def test_tasks_that_a_record_names_stand_behind_the_case_s_own(tmp_path: Path) -> None:
    case = dataclasses.replace(load_cases(["tiny"])[0], source=tmp_path / "tiny.yaml")
    (tmp_path / "mine").mkdir()
    for name in ("mmlu", "sums"):
        (tmp_path / "mine" / f"{name}.yaml").touch()
    found = case.also_asking(["ceval", "mine/mmlu.yaml", "mine/sums.yaml", "mine/moved.yaml"])
    assert found.tasks == ("mmlu", "ceval", "mine/sums.yaml")
    assert found.digest() == case.digest()


def test_the_digest_tells_real_from_dummy_weights() -> None:
    (case,) = load_cases(["llama3-8b"])
    assert case.digest("real") != case.digest("dummy")
    assert case.digest("real").startswith("sha256:")
    assert len(case.digest("real")) == len("sha256:") + 16
    assert dataclasses.replace(case, title="other").digest() == case.digest()


def test_a_case_is_hashable() -> None:
    (once,), (again,) = load_cases(["llama3-8b"]), load_cases(["llama3-8b"])
    assert {once: "x"}[again] == "x"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2026-13-45", "'2026-13-45' cannot be read as timestamp; quote it if it is text"),
        ('!!int ""', "'' cannot be read as int; quote it if it is text"),
        ("!!float x", "'x' cannot be read as float; quote it if it is text"),
        ("!!bool x", "'x' cannot be read as bool; quote it if it is text"),
        ("!!timestamp x", "'x' cannot be read as timestamp; quote it if it is text"),
        (
            "1" * 5000,
            f"'{'1' * 59}... (5002 characters) cannot be read as int; quote it if it is text",
        ),
        (
            "1" * 400,
            f"{'1' * 60}... (400 characters) is too large; expected a number of at most 64 bits",
        ),
        ("0x" + "f" * 5000, f"0x{'f' * 58}... (5002 characters) is too large; expected a number"),
        (r'"a\0b"', r"'a\x00b' holds what cannot be printed"),
        (r'"a\e[31m"', r"'a\x1b[31m' holds what cannot be printed"),
        (r'"\ud800"', r"'\ud800' holds what cannot be printed"),
    ],
)
def test_a_value_that_yaml_cannot_take_is_one_line(
    tmp_path: Path, value: str, message: str
) -> None:
    found = refusal(tmp_path, f"{MINIMAL}title: {value}\n")
    column = 8 if not value.startswith("!!") else found.split("column ")[1].split(":")[0]
    assert found.startswith(f"is not valid YAML: line 7, column {column}: {message}")
    assert found.isprintable()


def test_aliases_are_refused(tmp_path: Path) -> None:
    bomb = "title: &a [x, x]\nengine: [*a, *a]\n"
    assert refusal(tmp_path, MINIMAL + bomb) == (
        "is not valid YAML: line 8, column 10: alias '*a'; write its value out"
    )
    itself = MINIMAL + "  config: &c {model_type: llama, again: *c}\n"
    assert "alias '*c'; write its value out" in refusal(tmp_path, itself)


def test_endless_nesting_is_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path, f"{MINIMAL}title: {'[' * 5000}") == (
        "is not valid YAML: it is nested too deeply"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{when: 2026-01-02}", "key 'model.config.when' is \"datetime.date(2026, 1, 2)\" (exp"),
        ("{1: 2, a: 3}", "key 'model.config' has the key 1 (expected text as key)"),
        ("{a: {b: [1, .nan]}}", "key 'model.config.a.b.1' is nan (expected a number that is fin"),
        ("{a: -.inf}", "key 'model.config.a' is -inf (expected a number that is finite)"),
        ("{a: !!set {x}}", "key 'model.config.a' is \"{'x'}\" (expected text, a number"),
    ],
)
def test_a_config_that_has_no_digest_is_refused(tmp_path: Path, config: str, message: str) -> None:
    assert refusal(tmp_path, f"{MINIMAL}  config: {config}\n").startswith(message)


def test_a_huge_value_is_shown_in_part(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{MINIMAL}engine: [{', '.join(['x'] * 1000)}]\n")
    assert message.startswith('key \'engine\' is ["x", "x"')
    assert message.endswith("... (5000 characters) (expected a mapping of keys to values)")
    assert len(message) < 150


def test_a_loop_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").symlink_to("one.yml")
    (tmp_path / "one.yml").symlink_to("one.yaml")
    with pytest.raises(CaseError) as caught:
        find_cases(tmp_path)
    assert str(caught.value).startswith((f"{tmp_path}/one.y", "case 'one' stands in two files"))
    assert "\n" not in str(caught.value)


def test_the_two_limits_of_an_accuracy_drop_are_in_order(tmp_path: Path) -> None:
    gates = "gates: {accuracy_drop_regressed_pp: 0.6, accuracy_drop_ok_pp: 0.5}\n"
    assert refusal(tmp_path, MINIMAL + gates) == (
        "key 'gates.accuracy_drop_regressed_pp' is 0.6 (expected at most 0.5, "
        "which is gates.accuracy_drop_ok_pp)"
    )
    assert load_case(write(tmp_path, MINIMAL + gates.replace("0.6", "0.5"))).id == "mine"


def test_slim_cases_are_loaded_by_name_alone():
    slim = ["llama3-8b-slim", "deepseek-7b-slim"]
    assert [case.id for case in load_cases(slim)] == slim
    assert not set(slim) & {case.id for case in load_cases()}
    for name in slim:
        (narrow,) = load_cases([name])
        (published,) = load_cases([name.removesuffix("-slim")])
        assert narrow.model.config.keys() == published.model.config.keys()
        same = ("model_type", "rope_theta", "rms_norm_eps", "max_position_embeddings")
        assert [narrow.model.config[key] for key in same] == [
            published.model.config[key] for key in same
        ]
