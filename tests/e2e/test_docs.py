"""Does every command that the docs show do what it says?

Commands stand in ```console blocks. Each is parsed by the real parsers; what needs no GPU, network,
root or second environment is run too, page by page, in a small copy of this repository in which the
case ``tiny`` is made tinier. Output that a block shows must come out.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from doc_pages import (
    ALL,
    FOREIGN,
    MEASURE,
    OURS,
    PAGES,
    REPOSITORY,
    Command,
    commands,
    inline,
    python_files,
    rows,
    yaml_blocks,
)
from fork_server import python
from perfline.cases import case
from perfline.cli import main as cli
from tinier import make_small

COPIED = (
    "README.md",
    "CHANGELOG.md",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "conftest.py",
)
FOLDERS = ("tests/perf", "tests/accuracy", "baselines/published", "scripts", "docs", ".github")
# A launch pair of these takes seconds; of the case as it is, minutes.
SMALL_COMPARISON = "--max-pairs 1 --rounds 3 --questions 4"
# ``measured`` has compiled; what a page measures again need not.
UNCOMPILED = "--engines eager"


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``text`` in bash, in a copy of the repository."""
    own = ("PYTEST_", "GIT_", "PERFLINE_", "HF_", "ARGS", "MAKE")  # of a `make test` around this
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    environment |= {
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "GITHUB_STEP_SUMMARY": str(folder / "results" / "summary.md"),
        "XDG_CACHE_HOME": str(folder / ".cache"),  # no weights but those in the package
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository, its case ``tiny`` made small, under git."""
    folder = tmp_path_factory.mktemp("docs") / "clone"
    package = case.PACKAGED_CASES.parent
    shutil.copytree(package, folder / "src" / "perfline", ignore=shutil.ignore_patterns("__pyc*"))
    for name in FOLDERS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name)
    for name in (*COPIED, ".gitignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    make_small(folder / "src" / "perfline")
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text("")
    programs = {
        "python": "",
        "pytest": "-m pytest -p no:cacheprovider",
        "perfline": "-m perfline",
    }
    for name, module in programs.items():
        (binaries / name).write_text(f'#!/bin/sh\nexec "{python()}" {module} "$@"\n')
        (binaries / name).chmod(0o755)
    identity = "-c user.name=docs -c user.email=docs@example.org"
    begun = shell(f"git init -q -b main && git add -A && git {identity} commit -q -m docs", folder)
    assert begun.returncode == 0, begun.stderr
    shell("make --touch setup", folder)  # as if everything were installed
    planned = shell(f"make -n {MEASURE.split()[1]}", folder)
    assert "pytest" in planned.stdout, planned.stderr
    assert "pip" not in planned.stdout
    return folder


@pytest.fixture(scope="module")
def measured(clone: Path) -> Path:
    """The copy, once it has measured: ``make perf``, as the README says."""
    done = shell(MEASURE, clone)
    assert done.returncode == 0, done.stdout + done.stderr
    return clone


@pytest.fixture(scope="module")
def pytest_options(clone: Path) -> set[str]:
    done = shell("pytest --help", clone)
    assert "--full-pass" in done.stdout, done.stderr
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", done.stdout))


def perfline_options(words: list[str]) -> set[str]:
    """What the sub-command knows; empty where there is no such sub-command."""
    names = words[: 2 if words[:1] == ["baselines"] else 1]
    with (
        contextlib.redirect_stdout(io.StringIO()) as shown,
        contextlib.redirect_stderr(shown),
        pytest.raises(SystemExit) as end,
    ):
        cli.main([*names, "--help"])
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown.getvalue()))
    return known if end.value.code == 0 and names else set()


def given_options(words: list[str]) -> list[str]:
    # With a blank it is one option's value, such as "--pre torch".
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z][\w-]*(=|$)", word)]


def problems(words: list[str], clone: Path, pytest_options: set[str]) -> list[str]:
    """What is wrong with a program's words, by the real parsers; empty where nothing is."""
    program, *rest = words
    paths = [w for w in rest if re.match(r"(src|docs|tests|scripts|benchmarks)/[\w./-]+$", w)]
    found = [f"{path} does not exist" for path in paths if not (REPOSITORY / path).exists()]
    program = program.removeprefix(".venv/bin/")
    if program == "perfline":
        known = perfline_options(rest)
        found += [f"{option}: unknown" for option in given_options(rest) if option not in known]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                args = cli._parser().parse_args(rest)
            except SystemExit:
                return [*found, said.getvalue()]
        for name in getattr(args, "cases", None) or [] if rest[0] == "compare" else []:
            pairs = [text.partition("=")[::2] for text in args.candidate_set + args.baseline_set]
            case.with_settings(case.load_cases([name])[0], pairs)
    elif program == "pytest":
        found += [f"{o}: unknown" for o in given_options(rest) if o not in pytest_options]
    elif program == "torchrun":
        options = given_options(rest[rest.index("pytest") :])
        found += [f"{option}: unknown" for option in options if option not in pytest_options]
    elif program == "make":
        found += make_problems(rest, clone, pytest_options)
    elif program in ("python", "bash") and paths:
        source = (REPOSITORY / paths[0]).read_text()
        found += [f"{o}: unknown" for o in given_options(rest) if f'"{o}"' not in source]
    elif program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        project = (REPOSITORY / "pyproject.toml").read_text()
        names = [name for extra in extras for name in extra.split(",")]
        found += [f"{n}: no extra" for n in names if not re.search(rf"(?m)^{n} = \[", project)]
    elif program not in OURS | FOREIGN:
        found.append(f"{program}: in no class of this test; run it, or add it to FOREIGN")
    return found


def make_problems(rest: list[str], clone: Path, pytest_options: set[str]) -> list[str]:
    """The same for ``make``: its targets, its variables, and what it would run."""
    makefile = (REPOSITORY / "Makefile").read_text()
    found = []
    for word in rest:
        name, is_variable, _ = word.partition("=")
        used = f"$({name})" in makefile or f"$${{{name}:" in makefile
        if not (used if is_variable else re.search(rf"(?m)^{name}:", makefile)):
            found.append(f"{word}: no target or variable of the Makefile")
    planned = shell(f"make -n {shlex.join(rest)}", clone)
    if planned.returncode:
        return [*found, planned.stderr]
    for part in recipes(planned.stdout, rest):
        found += problems(part, clone, pytest_options)
    return found


def recipes(planned: str, words: list[str]) -> list[list[str]]:
    """Our programs among what ``make -n`` prints, ``${NAME:+...}`` as ``words`` say."""
    given = dict(word.split("=", 1) for word in words if "=" in word)

    def expanded(name: re.Match[str]) -> str:
        return name[2].replace(f"${name[1]}", given[name[1]]) if name[1] in given else ""

    text = re.sub(r"\$\{(\w+):\+(.*?)\}", expanded, planned)
    ours = re.findall(r"\.venv/bin/((?:pytest|perfline) [^;&|\n]*)", text)
    return [part for recipe in ours for part in Command("", 0, recipe, "").parts]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_parsers_know(page: str, clone: Path, pytest_options):
    wrong = [
        f"{page}:{command.line}: {problem}"
        for command in commands(page)
        for part in command.parts
        for problem in problems(part, clone, pytest_options)
    ]
    assert wrong == []


def test_a_mistyped_option_is_found(clone: Path, pytest_options):
    """This test's own test: any option of ours in any page, with one letter more."""
    tried = 0
    for command in ALL:
        for part in command.parts:
            for at, word in enumerate(part):
                if part[0] in ("perfline", "pytest") and given_options([word]):
                    name, sign, value = word.partition("=")
                    typed = [*part[:at], f"{name}x{sign}{value}", *part[at + 1 :]]
                    assert problems(typed, clone, pytest_options), typed
                    tried += 1
    assert tried >= 20
    assert problems(["make", "perf", "ARGS=--strickt"], clone, pytest_options)
    assert problems(["make", "perv"], clone, pytest_options)
    assert problems(["perfline", "baseline", "check"], clone, pytest_options)


def test_pytest_commands_for_other_machines_find_their_tests(clone: Path):
    tried = 0
    for command in ALL:
        for program, *rest in command.parts if command.elsewhere else []:
            planned = (
                shell(f"make -n {shlex.join(rest)}", clone).stdout if program == "make" else ""
            )
            for words in [[program, *rest], *recipes(planned, rest)]:
                if words[0] == "pytest" and rest != ["test"]:  # all tests: few are in this copy
                    here = [word.replace("--data-dir=/data", "--data-dir=.") for word in words]
                    done = shell(shlex.join([*here, "--collect-only", "-q"]), clone)
                    told = f"{command.page}:{command.line}: {done.stdout}{done.stderr}"
                    assert done.returncode == 0, told
                    only_answers = words[1:3] == ["-m", "accuracy"]
                    wanted = "mmlu.py::test_answers" if only_answers else "::test_throughput"
                    wanted = "::test_fingerprint" if "quick" in words else wanted
                    assert wanted in done.stdout, told
                    tried += 1
    assert tried >= 2


@pytest.mark.parametrize("page", PAGES)
def test_options_named_in_prose_exist(page: str, pytest_options):
    everywhere = set(pytest_options) | {"--label", "--labels", "--ephemeral", "--help"}
    everywhere |= {"--local-addr", "--max-restarts", "--nnodes", "--nproc-per-node"}  # torchrun's
    everywhere |= {
        "--pre",
        "--index-url",
        "--extra-index-url",
        "--find-links",
        "--no-index",
    }  # pip's
    searches = ("bisect", "isolate")
    for name in ("init", "doctor", "prompt", "compare", *searches, "export", "history", "report"):
        everywhere |= perfline_options([name])
    for name in ("update", "diff", "show", "check", "remove"):
        everywhere |= perfline_options(["baselines", name])
    for span in inline(page):
        program, *rest = span.split()
        if program == "perfline" and rest and re.fullmatch(r"[a-z]+", rest[0]):
            known = perfline_options(rest)
            if not (rest == ["baselines"] or known):
                pytest.fail(f"{page}: `{span}`: no such command")
            unknown = [o for o in given_options(rest) if o not in known]
        elif program == "pytest" or span.startswith("--"):
            unknown = [o for o in given_options(span.split()) if o not in everywhere]
        else:
            continue
        assert unknown == [], f"{page}: `{span}`"


@pytest.fixture
def workspace(request, measured: Path, tmp_path: Path) -> Iterator[Path]:
    """A page's own copy, with the files that the page itself shows."""
    folder = tmp_path / "page"
    shutil.copytree(measured, folder, symlinks=True)
    for text in yaml_blocks(request.param):
        if named := re.match(r"# (cases/[\w-]+\.yaml)\n", text):
            (folder / named[1]).parent.mkdir(exist_ok=True)
            (folder / named[1]).write_text(text)
    for name, text in python_files(request.param):
        (folder / name).write_text(text)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("workspace", "page"), [(page, page) for page in PAGES], indirect=["workspace"], ids=PAGES
)
def test_commands_run_as_shown(workspace: Path, page: str, compared: set[str], monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(case, "PACKAGED_CASES", workspace / "src" / "perfline" / "cases")
    accepted = False
    for number, command in enumerate(commands(page)):
        if command.elsewhere or command.bare in compared:
            continue
        if command.bare == MEASURE and not accepted:
            continue  # that is what ``measured`` has done
        another_session(workspace, 1 + (number + 1) / 1000)
        status, out, err = run(command, workspace)
        told = f"{page}:{command.line}: $ {command.text}\n{out}{err}"
        assert status == 0, told
        assert command.output in out, told
        accepted |= "baselines update" in command.text
        if command.bare.startswith("perfline compare"):
            compared.add(command.bare)


@pytest.fixture(scope="module")
def compared() -> set[str]:
    """Comparisons that were run: they leave nothing behind, so one of each is enough.

    So is one that is explained and writes its traces beside one that is explained alone.
    """
    explained = [command.bare for command in ALL if "--explain" in command.bare]
    return {one for one in explained for other in explained if other.startswith(f"{one} ")}


def run(command: Command, folder: Path) -> tuple[int, str, str]:
    """Status, output and errors; plain perfline commands run in this process, for speed."""
    text = command.text
    (words, *more) = command.parts
    if words[0] != "perfline" or more or ">" in text or words[1] in ("compare", "doctor", "prompt"):
        if words[:2] == ["perfline", "compare"]:
            text = f"{command.bare} {SMALL_COMPARISON}"
            text += "" if "--engine" in words else " --engine eager"
            for option in ("--baseline-python", "--candidate-python"):
                text += "" if option in given_options(words) else f" {option} {python()}"
        elif command.bare == MEASURE:
            text = f"{MEASURE} ARGS='{UNCOMPILED}'"
        elif words[0] == "pytest" and "--engines" not in given_options(words):
            text = f"{command.bare} {UNCOMPILED}"
        done = shell(text, folder)
        return done.returncode, done.stdout, done.stderr
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        status = cli.main(words[1:])
    return status, out.getvalue(), ""


def another_session(folder: Path, factor: float) -> None:
    """Before each command, records of sessions that differ a little from those accepted before.

    What a command of the page has measured in the meantime is what they differ from.
    """
    record, kept = folder / "results" / "run.json", folder / "results" / "as_measured"
    if not kept.exists() or "another_session" not in json.loads(record.read_text()):
        shutil.copy(record, kept)
    for name, times in (("run.json", factor), ("other-day.json", factor + 0.0005)):
        data = json.loads(kept.read_text())
        for measured_case in data["cases"].values():
            for metric in measured_case["metrics"].values():
                if metric["unit"] == "tok/s":
                    metric["value"] *= times
                    metric["samples"] = [times * sample for sample in metric["samples"]]
            for verdict in measured_case["verdicts"]:
                if verdict["unit"] == "tok/s" and verdict["measured"] is not None:
                    verdict["measured"] *= times
        record.with_name(name).write_text(json.dumps(data | {"another_session": True}))


# Known on a GPU, or on a device whose peak is known, only.
NOT_ON_A_CPU = {"mfu", "sm_clock", "temperature", "power", "tokens_per_joule"}
NOT_ON_A_CPU |= {"decode_bandwidth_advertised"}
# Known where the weights fit into no cache only; of batches and contexts, which a case may ask for.
NOT_OF_TINY = {"mbu", "decode_bandwidth", "decode_bN", "decode_cN", "ttft_bN", "ttft_cN"}
NOT_OF_TINY |= {"drift_val", "drift_infer"}  # in 16 bits
# Of a comparison, or verdicts without a metric.
IN_NO_RECORD = {"core_time", "whole_time", "decode_time", "energy", "letter_logprobs"}
IN_NO_RECORD |= {"fidelity_val", "fidelity_infer"}
VERDICTS_ONLY = {"fidelity", "flips", "acc_val_timed", "acc_infer_timed"}
VERDICTS_ONLY |= {"fingerprint", "fingerprint_val", "decode_flips", "decode_flips_val"}
VERDICTS_ONLY |= {"fingerprint_decode", "fingerprint_decode_val"}
# Of several ranks only; tests/e2e/test_torchrun.py has their units from a run.
OF_RANKS = {
    name: unit
    for kind in ("val", "infer")
    for name, unit in (
        (f"p_{kind}_core_per_device", "tok/s"),
        (f"p_{kind}_whole_one_rank", "tok/s"),
        (f"scaling_efficiency_{kind}", "fraction"),
    )
}


def test_every_metric_of_a_run_is_documented_with_its_unit(measured: Path):
    record = json.loads((measured / "results" / "run.json").read_text())
    metrics = record["cases"]["tiny"]["metrics"]
    units = {}
    for first, unit, *_ in rows("docs/metrics.md"):
        if first.startswith("`") and not first.startswith(("`eager`", "`inductor`")):
            units |= dict.fromkeys(re.findall(r"`(\w+)`", first), unit)
    assert {name: units.get(name) for name in metrics} == {
        name: metric["unit"] for name, metric in metrics.items()
    }
    more = set(units) - set(metrics) - IN_NO_RECORD - VERDICTS_ONLY
    assert {name: units.get(name) for name in OF_RANKS} == OF_RANKS
    more -= set(OF_RANKS)
    assert more >= NOT_OF_TINY
    more -= NOT_OF_TINY | {f"{name}_val" for name in NOT_OF_TINY}
    assert {name for name in more if not any(part in name for part in NOT_ON_A_CPU)} == set()
    assert more >= NOT_ON_A_CPU
