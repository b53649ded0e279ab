"""``perfline init``: what it writes, keeps, reads of a checkpoint, and says."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from doc_pages import REPOSITORY, rows
from perfline.cases.case import Case, load_case, own_cases
from perfline.cases.data import MMLU_URL, PACKAGED_DATA, read_checkpoint
from perfline.cli import init
from perfline.cli import main as cli
from perfline.errors import CaseError, DataError

TINY = PACKAGED_DATA / "tiny_mmlu" / "tiny_hf"
FILES = {
    *("tests/perf/test_decode.py", "tests/perf/test_throughput.py"),
    *("tests/accuracy/test_mmlu.py", "baselines/README.md"),
    *(".github/workflows/perf.yml", "cases/my-model.yaml"),
}
LLAMA = {"model_type": "llama", "torch_dtype": "bfloat16", "max_position_embeddings": 1024}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, in a home without any model."""
    monkeypatch.delenv("PERFLINE_DATA_DIR", raising=False)
    monkeypatch.setattr("perfline.cases.data.hub_cache", lambda hub_id: None)
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    return repository


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of 6,000,000 bfloat16 weights, of which no byte is on the disk."""
    folder = tmp_path / "models" / "Some Model" / "v1"
    folder.mkdir(parents=True)
    write_checkpoint(folder, LLAMA, {"a": tensor([2000, 3000], 12_000_000)})
    return folder


def tensor(shape: object, size: int, dtype: object = "BF16") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


def write_checkpoint(folder: Path, config: object, tensors: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps(tensors).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(file.tell() + max(t["data_offsets"][1] for t in tensors.values()))


def run(*words: str) -> int:
    return cli.main(["init", *words])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal, after which nothing was written."""
    assert run(*words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert list(Path().iterdir()) == []
    (line,) = said.err.splitlines()
    return line.removeprefix("perfline: error: ")


def written_case(name: str) -> Case:
    return load_case(Path("cases") / f"{name}.yaml")


def test_an_empty_directory_gets_all_files_and_the_next_command(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    there = {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()}
    assert there == FILES == {line[9:] for line in out.splitlines() if line[:9] == "written: "}
    assert out.endswith("next:\n  pytest -m perf\n")
    assert written_case("my-model").title == "the model that comes with perfline"


def test_nothing_that_is_there_is_overwritten(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES - {"baselines/README.md"}:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    (home / "baselines").mkdir()
    (home / "baselines" / "README.md").symlink_to(tmp_path / "nowhere")
    assert run() == 0
    out = capsys.readouterr().out
    assert {line[9:] for line in out.splitlines() if line[:9] == "kept:    "} == FILES
    assert "written" not in out
    assert {(home / name).read_text() for name in FILES - {"baselines/README.md"}} == {"mine"}
    assert not (tmp_path / "nowhere").exists()


def test_a_case_with_the_other_ending_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside it, pytest would find the case in two files."""
    assert run() == 0
    Path("cases/my-model.yaml").rename("cases/my-model.yml")
    assert run() == 0
    assert "kept:    cases/my-model.yml" in capsys.readouterr().out
    assert [path.name for path in Path("cases").iterdir()] == ["my-model.yml"]


def test_what_is_to_be_corrected_is_named_from_where_the_commands_are_typed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "other" / "cases").mkdir(parents=True)
    (home / "other" / "cases" / "my-model.yaml").write_text("case: mine\n")
    assert run("other") == 0
    last = capsys.readouterr().out.split("next:\n")[1].splitlines()
    assert last[0] == "  cd other"
    assert last[1].startswith("  correct cases/my-model.yaml: key 'model' is missing")


def test_another_directory_comes_before_the_next_command(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("my project") == 0
    assert capsys.readouterr().out.endswith("next:\n  cd 'my project'\n  pytest -m perf\n")
    assert (home / "my project" / "cases" / "my-model.yaml").is_file()


def test_the_embedded_checkpoint_is_measured_as_the_packaged_case_is() -> None:
    assert run("--weights", str(TINY)) == 0
    case, tiny = written_case("tiny-hf"), load_case(init.HERE.parent / "cases" / "tiny.yaml")
    assert (case.model.case_dir, case.model.weight_dir) == ("tiny_mmlu", "tiny_hf")
    assert (case.model.precision, case.model.nominal_parameters) == ("fp32", 1.03e6)
    assert case.model.bos is True  # as tiny's tokenizer has it
    assert (case.mmlu, case.engine, case.throughput, case.gates) == (
        *(tiny.mmlu, tiny.engine, tiny.throughput, tiny.gates),
    )


def test_a_checkpoint_fills_in_the_case(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--weights", str(checkpoint), "--case", "mine") == 0
    case = written_case("mine")
    assert (case.model.case_dir, case.model.weight_dir) == ("Some Model", "v1")
    assert (case.model.precision, case.model.nominal_parameters) == ("bf16", 6e6)
    assert case.mmlu.max_prompt_tokens == 1024
    root = checkpoint.parents[1]
    assert capsys.readouterr().out.split("next:\n")[1].splitlines() == [
        f"  export PERFLINE_DATA_DIR={root}",
        f"  curl -L --create-dirs {MMLU_URL} -o '{root}/Some Model/data.tar'",
        "  pytest -m perf",
    ]


def test_questions_of_another_place_are_found(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = checkpoint.parents[1] / "questions"
    for split in ("dev", "test"):
        (questions / split).mkdir(parents=True)
    assert run("--weights", str(checkpoint), "--mmlu", str(questions)) == 0
    case = written_case("v1")
    assert (case.model.case_dir, case.model.weight_dir) == ("models", "Some Model/v1")
    assert case.mmlu.mmlu_dir == "questions"
    assert "curl" not in capsys.readouterr().out


def test_a_large_model_keeps_the_limits_of_a_quiet_machine(checkpoint: Path) -> None:
    write_checkpoint(checkpoint, LLAMA, {"a": tensor([20_000, 6000], 240_000_000)})
    assert run("--weights", str(checkpoint)) == 0
    case = written_case("v1")
    assert case.gates.throughput_margin_fraction == 0.02
    assert (case.engine.cpu_threads, case.throughput.rounds) == (None, 5)


def test_what_the_checkpoint_does_not_say_is_to_be_filled_in(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(checkpoint, {"model_type": "x"}, {"a": tensor([10], 10, "F8_E4M3")})
    assert run("--weights", str(checkpoint)) == 0
    with pytest.raises(CaseError, match=r"'model\.precision' is empty \(expected fp32, "):
        written_case("v1")
    assert "correct cases/v1.yaml: key 'model.precision' is empty" in capsys.readouterr().out
    assert "config.json names no limit" in Path("cases/v1.yaml").read_text()


def test_a_quantised_checkpoint_is_measured_as_it_is_stored(checkpoint: Path) -> None:
    scheme = {"quant_method": "awq", "bits": 4}
    config = {**LLAMA, "dtype": "float16", "quantization_config": scheme}
    write_checkpoint(checkpoint, config, {"a": tensor([10], 10, "U8")})
    assert run("--weights", str(checkpoint)) == 0
    assert written_case("v1").model.precision == "checkpoint"
    assert "config.json: quantised by awq, 4 bits" in Path("cases/v1.yaml").read_text()


def test_a_checkpoint_with_an_encoder_is_refused_before_a_case_is_written(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**LLAMA, "model_type": "t5", "is_encoder_decoder": True}
    write_checkpoint(checkpoint, config, {"a": tensor([10], 10, "F16")})
    assert run("--weights", str(checkpoint)) != 0
    assert "config.json: 'is_encoder_decoder' is true" in capsys.readouterr().err
    assert not Path("cases").exists()


def test_without_a_word_in_the_config_the_stored_type_counts(checkpoint: Path) -> None:
    write_checkpoint(checkpoint, {"model_type": "x"}, {"a": tensor([5], 10, "F16")})
    assert run("--weights", str(checkpoint)) == 0
    assert written_case("v1").model.precision == "fp16"


def test_a_broken_tokenizer_is_said_in_the_case(checkpoint: Path) -> None:
    assert run("--weights", str(checkpoint)) == 0
    assert written_case("v1").model.bos == "tokenizer"
    assert "The tokenizer could not be asked: " in Path("cases/v1.yaml").read_text()


@pytest.mark.parametrize(
    ("added", "bos"), [([1, 5, 6], True), ([5, 6], False), ([5, 6, 2], "tokenizer")]
)
def test_bos_is_what_the_tokenizer_does(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, added: list[int], bos: object
) -> None:
    class Tokenizer:
        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": added if add_special_tokens else [5, 6]}

    monkeypatch.setattr("perfline.cli.prompt.load_tokenizer", lambda path: Tokenizer())
    assert run("--weights", str(checkpoint)) == 0
    assert written_case("v1").model.bos == bos


def test_a_hub_id_that_is_not_here_is_named_and_never_guessed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--weights", "Some-Owner/Model-7B") == 0
    text = Path("cases/model-7b.yaml").read_text()
    assert "hub_id: Some-Owner/Model-7B\n" in text
    with pytest.raises(CaseError, match=r"'model\.precision' is empty"):
        written_case("model-7b")
    assert capsys.readouterr().out.split("next:\n")[1].splitlines() == [
        "  hf download Some-Owner/Model-7B",
        "  rm cases/model-7b.yaml && perfline init --weights Some-Owner/Model-7B --case model-7b",
    ]


def test_a_hub_id_is_found_in_the_cache(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perfline.cases.data.hub_cache", lambda hub_id: checkpoint)
    assert run("--weights", "o/llama3-8b") == 0
    case = written_case("llama3-8b-mine")  # the packaged one has the name
    assert (case.model.hub_id, case.model.precision) == ("o/llama3-8b", "bf16")
    assert f"{MMLU_URL} -o DATA_DIR/llama3_8b_mmlu/data.tar" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["null", "1e3", "a: b # c", 'quote"d', "ünï", "$case", "yes"])
def test_any_printable_name_of_a_directory_is_kept(checkpoint: Path, name: str) -> None:
    moved = checkpoint.rename(checkpoint.with_name(name))
    assert run("--weights", str(moved), "--case", "mine") == 0
    assert written_case("mine").model.weight_dir == name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--weights", "nowhere"], "is no directory, and no id of the hub such as owner/name"),
        (["--weights", "a\nb/c"], "holds what cannot be printed"),
        (["--weights", "../nowhere"], "is no directory, and no id of the hub such as owner/name"),
        (["a\nb"], "a\\nb: holds what cannot be printed; rename it"),
        (["--weights", ""], "--weights is empty: name a directory or an id of the hub"),
        (["--mmlu", "x"], "name it with --weights"),
        (["--mmlu", "x", "--weights", "a/b"], "--mmlu needs weights in a directory"),
        (["--mmlu", "x", "--weights", str(TINY)], "holds no dev/ and test/"),
        (["--case", "tiny"], "none of the packaged deepseek-7b, llama3-8b, tiny"),
        (["--case", "Mine"], "--case=Mine: expected [a-z0-9]"),
        (["--case", "x-dummy"], "not ending in -dummy"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, *words)


def fifo(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def endless(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(200_000_000)


def long_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 150_000_000))
        file.truncate(200_000_000)


def config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def stored(**given: object) -> Callable[[Path], None]:
    return lambda folder: write_checkpoint(folder, LLAMA, {"a": tensor([4], 8) | given})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (fifo, "config.json: is no file of at most 100,000,000 bytes"),
        (endless, "config.json: is no file of at most 100,000,000 bytes"),
        (long_header, "its header has 150000000 bytes (expected at most 100000000)"),
        (config("[" * 100_000), "nested too deeply"),
        (config("[1]"), "holds a list; expected a JSON object"),
        (config('{"auto_map": {"AutoModelForCausalLM": "x.Y"}}'), "the checkpoint's own code"),
        (pickled, "pickles can run code"),
        (stored(shape=[-4]), "tensor 'a' has shape [-4]"),
        (stored(shape=[10**30, 10**30]), "expected sizes that fit the file"),
        (stored(shape="x"), "tensor 'a' has shape x"),
        (stored(dtype=None), "dtype None"),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else None,
)
def test_a_hostile_checkpoint_is_one_line(
    spoil: Callable[[Path], None],
    expected: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(checkpoint)
    assert expected in refusal(capsys, "--weights", str(checkpoint))


@pytest.mark.parametrize("most", [True, -1, 0, 10**18, "x", None])
def test_absurd_positions_are_none(checkpoint: Path, most: object) -> None:
    (checkpoint / "config.json").write_text(json.dumps({**LLAMA, "max_position_embeddings": most}))
    assert run("--weights", str(checkpoint)) == 0
    assert written_case("v1").mmlu.max_prompt_tokens == 2048


def test_every_documented_key_stands_in_the_case_with_a_remark() -> None:
    assert run() == 0
    keys = [cell[0].strip("`") for cell in rows("docs/cases.md") if cell[0].startswith("`")]
    lines = Path("cases/my-model.yaml").read_text().splitlines()
    remarked, section = set(), ""
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line[:1].isalpha():
            section = line.partition(":")[0]
        if " #" in line or after.strip().startswith("#"):
            name = line.strip().partition(":")[0]
            remarked.add(name if line[:1] != " " else f"{section}.{name}")
    assert len(keys) > 35
    assert set(keys) - remarked == set()
    assert max(map(len, lines)) <= 100


def test_the_suite_is_one_source() -> None:
    for name, source in init.COPIES.items():
        if name.startswith("tests/"):
            assert (REPOSITORY / name).read_text() == source.read_text(), name


def test_the_workflow_is_as_hardened_as_ours(home: Path) -> None:
    assert run() == 0
    scripts, folder = Path(sysconfig.get_path("scripts")), home / ".github" / "workflows"
    for words in (
        ["zizmor", "--offline", "--quiet", "--pedantic", str(folder)],
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", f"{folder}/perf.yml"],
    ):
        done = subprocess.run(
            [scripts / words[0], *words[1:]], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_own_cases_are_yaml_files_that_say_case(home: Path) -> None:
    assert own_cases(home) == {}
    folder = home / "cases"
    folder.mkdir()
    (folder / "other.yaml").write_text("name: of another tool\n  case: x\n")
    assert own_cases(home) == {}
    (folder / "mine.yml").write_text("# a remark\ncase: mine\n")
    assert own_cases(home) == {"mine": folder / "mine.yml"}


def test_commands_take_a_repositorys_own_cases_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No baseline of the packaged cases is missed, and all are known."""
    assert run() == 0
    (home / "baselines" / "some-machine").mkdir()
    capsys.readouterr()
    assert cli.main(["baselines", "check"]) == 0
    (home / "baselines" / "some-machine" / "x.json").write_text("{}")
    assert cli.main(["baselines", "check"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "missing: some-machine has no baseline of case 'my-model'" in out
    assert "'llama3-8b'" not in out


def test_read_checkpoint_counts_all_shards(checkpoint: Path) -> None:
    for name in ("a", "b"):
        write_checkpoint(checkpoint, LLAMA, {name: tensor([2, 5], 20)})
        (checkpoint / "model.safetensors").rename(checkpoint / f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_checkpoint(checkpoint)
    assert (found.parameters, found.dtypes) == (20, {"BF16": 20})
    (checkpoint / "b.safetensors").unlink()
    with pytest.raises(DataError, match="is missing"):
        read_checkpoint(checkpoint)
