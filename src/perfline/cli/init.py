"""What does somebody's own repository need? ``perfline init [DIR]`` writes it, and what comes next.

A file that is there is kept. What a checkpoint says of itself fills in the case: read with limits,
nothing of it run. What it does not say stays empty, and measuring refuses the file until it is
filled in.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import yaml

from perfline.cli.options import add_command
from perfline.errors import CaseError, DataError, PerflineError, printable
from perfline.jsonfile import write_text

HERE = Path(__file__).parent
SUITE = HERE.parent / "suite"
COPIES = {
    "tests/perf/test_decode.py": SUITE / "test_decode.py",
    "tests/perf/test_throughput.py": SUITE / "test_throughput.py",
    "tests/accuracy/test_mmlu.py": SUITE / "test_mmlu.py",
    "baselines/README.md": HERE / "templates" / "baselines.md",
    ".github/workflows/perf.yml": HERE / "templates" / "perf.yml",
}
PASTE = """\
to keep these tests out of a plain `pytest`, paste into pyproject.toml:
  [tool.pytest.ini_options]
  addopts = ["-m", "not (perf or accuracy)"]
and into .gitignore:
  /results/
  /.benchmarks/"""
SMALL = 1e8  # parameters: a model that a CPU runs, whose noise weighs more
_CONFIG_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_STORED_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class Place:
    """Where a case's data lie: ``data_dir``/``case_dir``/``weight_dir`` and .../``mmlu_dir``."""

    data_dir: Path | None  # None: where the user will have it, or the package's own
    case_dir: str
    weight_dir: str
    mmlu_dir: str = "mmlu_dataset/data"
    hub_id: str | None = None


def add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "init",
        _run,
        "write what your own repository needs: tests, a case, baselines, a workflow",
        "example:\n"
        "  perfline init . --weights /data/my_model/checkpoint --mmlu /data/my_model/mmlu",
        "A file that is there is kept. Without --weights the case measures the model that comes "
        "with perfline.",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, nargs="?", default=Path(), help="default: here"
    )
    parser.add_argument(
        "--weights",
        metavar="DIR|HUB_ID",
        help="a checkpoint: its directory, or its id on the Hugging Face hub (looked up in the "
        "local cache; nothing is downloaded)",
    )
    parser.add_argument(
        "--mmlu",
        metavar="DIR",
        type=Path,
        help="the questions: holds dev/ and test/ (default: mmlu_dataset/data beside the weights)",
    )
    parser.add_argument("--case", metavar="NAME", help="the case's id (default: the checkpoint's)")


def _run(args: argparse.Namespace) -> int:
    return init(args.directory, args.weights, args.mmlu, args.case)


def init(root: Path, weights: str | None, mmlu: Path | None, name: str | None) -> int:
    """Write the files below ``root`` and print what was written, kept, and is to be typed next."""
    if not str(root).isprintable():
        raise CaseError(f"{printable(str(root))}: holds what cannot be printed; rename it")
    place, checkpoint = _place(weights, mmlu)
    case = _case_id(name, weights)
    path = root / "cases" / f"{case}.yaml"
    if os.path.lexists(other := path.with_suffix(".yml")):  # beside it, it would be the same case
        path = other
    text = _case_text(case, place, checkpoint, own=weights is not None)
    for relative, source in COPIES.items():
        _write(root / relative, source.read_text(encoding="utf-8"))
    _write(path, text)
    print(f"\n{PASTE}\n\nnext:")
    if root.resolve() != Path().resolve():
        print(f"  cd {shlex.quote(str(root))}")
    for command in _next(path, place, checkpoint, weights):
        print(f"  {command}")
    return 0


def _write(path: Path, text: str) -> None:
    """Write a file that is not there, and say which it was."""
    if os.path.lexists(path):
        print(f"kept:    {printable(str(path))}")
        return
    write_text(path, text, CaseError)
    print(f"written: {printable(str(path))}")


def _place(weights: str | None, mmlu: Path | None) -> tuple[Place, Path | None]:
    """Where the data lie, and the checkpoint's directory where it is on this machine."""
    from perfline.cases import data

    if weights is None:
        if mmlu is not None:
            raise DataError("--mmlu names the questions of a model: name it with --weights")
        place = Place(None, "tiny_mmlu", "tiny_hf")
        return place, data.PACKAGED_DATA / place.case_dir / place.weight_dir
    if not weights.strip():
        raise DataError("--weights is empty: name a directory or an id of the hub, or leave it out")
    if not weights.isprintable():
        raise DataError(f"--weights={printable(weights)}: holds what cannot be printed; rename it")
    given = Path(weights)
    if not given.is_dir():
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights, re.ASCII) or given.exists():
            raise DataError(
                f"--weights={weights}: is no directory, and no id of the hub such as owner/name"
            )
        if mmlu is not None:
            raise DataError(
                "--mmlu needs weights in a directory: `hf download "
                f"{weights} --local-dir DIR`, then --weights=DIR"
            )
        folder = re.sub(r"\W+", "_", weights.rpartition("/")[2].lower())
        root = data.named(None)
        return Place(root, f"{folder}_mmlu", f"{folder}_hf", hub_id=weights), data.hub_cache(
            weights
        )
    checkpoint = given.absolute()
    questions = mmlu.absolute() if mmlu is not None else checkpoint.parent / Place.mmlu_dir
    if mmlu is not None and not all((mmlu / split).is_dir() for split in ("dev", "test")):
        raise DataError(f"--mmlu={mmlu}: holds no dev/ and test/; expected both, with MMLU's CSVs")
    checkpoint, questions = (Path(os.path.normpath(path)) for path in (checkpoint, questions))
    home = Path(os.path.commonpath([checkpoint.parent, questions]))
    if home == home.parent:
        raise DataError(
            f"{checkpoint} and {questions} have no directory in common but {home}; move or link "
            "them: DATA_DIR/CASE_DIR holds both"
        )
    return Place(
        home.parent,
        home.name,
        checkpoint.relative_to(home).as_posix(),
        questions.relative_to(home).as_posix(),
    ), checkpoint


def _case_id(name: str | None, weights: str | None) -> str:
    """``name``, checked; else one made of the checkpoint's name, which no packaged case has."""
    from perfline.cases.case import CASE_ID, find_cases

    packaged = find_cases()
    if name is not None:
        if not CASE_ID.fullmatch(name) or name.endswith("-dummy") or name in packaged:
            raise CaseError(
                f"--case={printable(name)}: expected {CASE_ID.pattern}, not ending in -dummy, and "
                f"none of the packaged {', '.join(packaged)}"
            )
        return name
    last = Path(os.path.normpath(Path(weights).absolute())).name if weights else ""
    made = re.sub(r"[^a-z0-9]+", "-", last.lower())[:25].strip("-") or "my-model"
    return f"{made}-mine" if made in packaged or made.endswith("-dummy") else made


def _case_text(case: str, place: Place, directory: Path | None, own: bool) -> str:
    """The case's YAML: every key, each with a remark, filled in from the checkpoint."""
    unknown = "fill in: the checkpoint was not at hand" if directory is None else "fill in"
    values = {
        "case": _quoted(case),
        "title": f"{case}, 5-shot MMLU" if own else "the model that comes with perfline",
        "hub_id": _quoted(place.hub_id) if place.hub_id else "null",
        "case_dir": _quoted(place.case_dir),
        "weight_dir": _quoted(place.weight_dir),
        "mmlu_dir": _quoted(place.mmlu_dir),
        **dict.fromkeys(("precision", "parameters"), ""),
        **dict.fromkeys(("precision_from", "parameters_from", "bos_from"), unknown),
        "bos": "tokenizer",
        "positions": "2048",
        "positions_from": "As published",
        "gates_from": "",
        **{"cpu_threads": "null", "rounds": "5", "min_round_s": "1.0"},
        **{"margin": "0.02", "spread": "0.01", "memory": "64"},
    }
    if directory is not None:
        values |= _facts(directory)
    text = Template((HERE / "templates" / "case.yaml").read_text(encoding="utf-8")).substitute(
        values
    )
    # A remark goes behind a value that leaves room for it.
    text = re.sub(r"(?m)^(  \w+: .{,22})\n    (# .*)$", _beside, text)
    return re.sub(r"(?m) +$", "", text)


def _beside(found: re.Match[str]) -> str:
    line = f"{found[1]:<35}  {found[2]}"
    return line if len(line) <= 100 else found[0]


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise DataError(f"{printable(text)}: holds what cannot be printed; rename it")
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII)
    return text if plain and yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)


def _facts(directory: Path) -> dict[str, str]:
    """What a checkpoint says of itself, and where it says so."""
    from perfline.cases import data

    found = data.read_checkpoint(directory)
    if found.config.get("is_encoder_decoder") is True:
        raise DataError(
            f"{directory / 'config.json'}: 'is_encoder_decoder' is true, and perfline runs "
            "decoder-only LMs alone; choose a checkpoint without an encoder"
        )
    parameters = found.parameters
    values = {
        "parameters": re.sub(r"e\+0?", "e", f"{parameters:.2e}"),
        "parameters_from": f"Counted: {parameters:,}",
        **_precision(found.config, found.dtypes),
        **_positions(found.config),
        **_bos(directory),
    }
    if parameters < SMALL:
        values |= {
            "gates_from": ": of a small model, on a shared CPU",
            **{"cpu_threads": "1", "rounds": "7", "min_round_s": "0.2"},
            **{"margin": "0.30", "spread": "0.15", "memory": "256"},
        }
    return values


def _precision(config: Mapping[str, object], dtypes: Mapping[str, int]) -> dict[str, str]:
    from perfline.cases.data import quantization

    if scheme := quantization(config):
        return {"precision": "checkpoint", "precision_from": f"config.json: quantised by {scheme}"}
    for key in ("dtype", "torch_dtype"):
        said = config.get(key)
        if isinstance(said, str) and said.removeprefix("torch.") in _CONFIG_DTYPES:
            precision = _CONFIG_DTYPES[said.removeprefix("torch.")]
            return {"precision": precision, "precision_from": f"config.json: {key}"}
    if len(dtypes) == 1 and (stored := _STORED_DTYPES.get(next(iter(dtypes)))):
        return {"precision": stored, "precision_from": "As the weights are stored"}
    return {"precision_from": "Fill in: config.json names none of them"}


def _positions(config: Mapping[str, object]) -> dict[str, str]:
    for key in ("max_position_embeddings", "n_positions"):
        most = config.get(key)
        if type(most) is int and 0 < most < 2**31:
            told = f"The model takes {most}"
            return {"positions": str(min(2048, most)), "positions_from": told}
    return {"positions_from": "config.json names no limit"}


def _bos(directory: Path) -> dict[str, str]:
    """What the tokenizer puts in front, said so that another release of it changes nothing."""
    from perfline.cli.prompt import load_tokenizer

    try:
        tokenizer = load_tokenizer(directory)
        plain = list(tokenizer("Answer:", add_special_tokens=False)["input_ids"])
        added = list(tokenizer("Answer:")["input_ids"])
        front = tokenizer.bos_token_id
    except Exception as error:  # tokenizers has no class of its own for a broken file
        why = str(error) if isinstance(error, PerflineError) else type(error).__name__
        why = why.rpartition("cannot be loaded: ")[2].replace("$", "")
        return {"bos_from": f"The tokenizer could not be asked: {printable(why)[:100]}"}
    if added == plain:
        return {"bos": "false", "bos_from": "The tokenizer adds none"}
    if front is not None and added == [front, *plain]:
        return {"bos": "true", "bos_from": "The tokenizer adds it"}
    return {"bos_from": "The tokenizer adds more than BOS, or something else"}


def _next(path: Path, place: Place, checkpoint: Path | None, weights: str | None) -> list[str]:
    """What to type, in this order, until something is measured and accepted."""
    from perfline.cases import data
    from perfline.cases.case import load_case
    from perfline.errors import MissingData

    shown = Path("cases") / path.name
    if checkpoint is None:
        return [
            f"hf download {weights}",
            f"rm {shown} && perfline init --weights {weights} --case {path.stem}",
        ]
    commands = []
    known = (None, data.named(None), data.PACKAGED_DATA)
    if place.data_dir not in known:
        commands.append(f"export {data.VARIABLE}={shlex.quote(str(place.data_dir))}")
    try:
        data.find_mmlu(load_case(path), place.data_dir)
    except MissingData as missing:
        commands.append(missing.command)
    except CaseError as wrong:  # what the checkpoint does not say, or a file that was kept
        return [*commands, f"correct {str(wrong).replace(str(path), str(shown))}"]
    return [*commands, f"pytest -m perf --cases {path.stem}" if _others(path) else "pytest -m perf"]


def _others(path: Path) -> bool:
    """Whether other cases stand beside this one, so that pytest would measure them too."""
    from perfline.cases.case import own_cases

    return len(own_cases(path.parent.parent)) > 1
