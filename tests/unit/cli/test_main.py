from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perfline.baselines import baseline
from perfline.cases.case import Case
from perfline.cli import main as cli
from perfline.engines.environment import Environment
from perfline.errors import BaselineError
from perfline.report.table import number
from perfline.tasks import prompts
from perfline.tasks.task import packaged_tasks
from samples import (
    CONTEXT,
    MACHINE,
    answers,
    case_record,
    metrics,
    packaged,
    record,
    saved,
    verdict,
)

COMMANDS = [
    [],
    ["doctor"],
    ["prompt"],
    ["compare"],
    ["report"],
    ["export"],
    ["history"],
    ["baselines"],
    *(["baselines", name] for name in ("update", "diff", "show", "check", "remove")),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty work tree to stand in, so that messages hold short relative paths."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    return Path()


def run(*words: str) -> int:
    return cli.main(words)


def accept(directory: Path, *words: str) -> int:
    return run("baselines", "update", "tiny", "--run", str(directory), "--reason", "first", *words)


def stored(name: str = "tiny") -> baseline.Baseline:
    return baseline.load(Path("baselines") / MACHINE / f"{name}.json")


def rows(printed: str) -> dict[str, list[str]]:
    """The tables' rows: first word -> the other words."""
    return {words[0]: words[1:] for line in printed.splitlines() if (words := line.split())}


def tok_per_s(value: float) -> str:
    return number(value, "tok/s")


# --- the command line itself


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(*words, "--help")

    printed = capsys.readouterr().out
    assert f"\nexample:\n  {' '.join(['perfline', *words])}" in printed


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["prompt", "--help"],
        ["baselines", "show", "--baselines", "BASELINES"],
        ["baselines", "check", "--baselines", "BASELINES"],
        ["baselines", "diff", "tiny", "--run", "RUN", "--baselines", "BASELINES"],
        [
            "baselines",
            "update",
            "tiny",
            "--run",
            "RUN",
            "--baselines",
            "BASELINES",
            "--reason",
            "x",
        ],
        ["baselines", "remove", "tiny", "--machine", MACHINE, "--baselines", "BASELINES"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_torch_is_not_imported(words: list[str], tmp_path: Path) -> None:
    path = saved(tmp_path, record())
    baselines = tmp_path / "baselines"
    assert accept(path, "--baselines", str(baselines)) == 0
    faster = saved(tmp_path, record(case_record(metrics=metrics(1001.0))), "faster.json")
    places = {"BASELINES": str(baselines), "RUN": str(faster)}
    program = (
        "import sys\n"
        "from perfline.cli import main as cli\n"
        "try: status = cli.main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'scipy.stats'} & set(sys.modules)\n"
        "sys.exit(f'status {status}, imported {heavy}' if status or heavy else 0)"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *(places.get(w, w) for w in words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--version")

    assert capsys.readouterr().out == "perfline 0.1.0\n"


def test_python_m_perfline_is_perfline(tmp_path: Path) -> None:
    def done(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "perfline", *words]
        got = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return got.returncode, got.stdout, got.stderr

    status, out, err = done("baselines", "--help")
    assert (status, out.splitlines()[0], err) == (
        0,
        "usage: perfline baselines [-h] COMMAND ...",
        "",
    )
    status, out, err = done("baselines", "show", "--baselines=none")
    assert (status, out) == (2, "")
    assert err.startswith("perfline: error: none: no such directory of baselines; ")


def test_an_error_is_one_line_on_stderr_and_status_2(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("baselines", "update", "tiny", "--reason", "first") == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ("perfline: error: results/run.json: is not there; run pytest again\n")


# --- update


def test_update_prints_old_and_new_and_writes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(Path("results"), record())
    assert accept(path) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"tiny (fp32, real weights) on {MACHINE}\n  metric ")
    assert [line.split()[0] for line in printed.splitlines()[1:9]] == [
        "metric",
        "p_infer_core",
        "p_val_core",
        "acc_infer",
        "acc_val",
        "mem",
        "graph_breaks",
        "graphs",
    ]
    assert rows(printed)["metric"] == ["unit", "old", "new", "change"]
    assert rows(printed)["p_infer_core"] == ["tok/s", "-", tok_per_s(1000)]
    assert rows(printed)["acc_infer"] == ["%", "-", number(1.0, "fraction")]
    assert rows(printed)["graph_breaks"] == ["count", "-", "0"]
    assert printed.endswith(
        "  new: there was no baseline\n"
        f"  written: baselines/{MACHINE}/tiny.json\n\n"
        f"next: git add baselines/{MACHINE}/tiny.json\n"
    )

    faster = case_record(metrics=metrics(1100.0), accuracy={"eager": answers([7])})
    path = saved(Path("results"), record(faster))
    assert accept(path) == 0

    printed = capsys.readouterr().out
    changed = rows(printed)
    assert changed["p_infer_core"] == ["tok/s", tok_per_s(1000), tok_per_s(1100), "+10.0", "%"]
    assert changed["acc_val"][-2:] == ["-0.25", "pp"]
    assert changed["acc_infer:"] == ["kept"]
    assert "acc_infer" not in changed
    assert changed["compile_time"][:2] == ["s", number(9.5, "s")]
    assert changed["graphs"] == ["count", "2", "2", "+0"]
    assert "  replaced: sessions 1 -> 1\n" in printed
    assert stored().values("p_infer_core") == (1100.0,)
    assert stored().accuracy["inductor"] == answers(reason="first")
    assert stored().sessions[0].reason == "first"


def test_add_gathers_sessions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for speed in (1000.0, 1010.0, 990.0):
        path = saved(Path("results"), record(case_record(metrics=metrics(speed))))
        assert accept(path, "--add") == 0

    assert stored().values("p_infer_core") == (1000.0, 1010.0, 990.0)
    assert "  added: sessions 2 -> 3\n" in capsys.readouterr().out


def test_a_refused_update_says_every_reason_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = case_record("llama3-8b", "dummy")
    bad = case_record(
        verdicts=(
            verdict("p_infer_core", "invalid", reason="clocks throttled"),
            verdict("acc_val", "regressed", "published", reason="far below"),
        )
    )
    path = saved(Path("results"), record(good, bad))

    assert run("baselines", "update", "--all", "--run", str(path), "--reason", "why") == 2

    assert capsys.readouterr().err == (
        "perfline: error: results/run.json: case 'tiny': p_infer_core invalid: clocks throttled; "
        "run pytest again undisturbed\n"
        "perfline: error: results/run.json: case 'tiny': acc_val regressed: far below; wrong "
        "answers are never a baseline, fix them\n"
    )
    assert list(Path("baselines").rglob("*.json")) == []


def test_a_refused_update_leaves_the_old_file_as_it_was(place: Path) -> None:
    assert accept(saved(Path("results"), record())) == 0
    before = (Path("baselines") / MACHINE / "tiny.json").read_bytes()
    slow = record(case_record(metrics=metrics(500.0)))

    assert accept(saved(Path("results"), slow)) == 2
    assert (Path("baselines") / MACHINE / "tiny.json").read_bytes() == before
    assert accept(saved(Path("results"), slow), "--accept-regression") == 0
    assert stored().values("p_infer_core") == (500.0,)


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"partial": True}, [], "results/run.json: is partial: the session was interrupted"),
        ({"cases": {}}, [], "results/run.json: case 'tiny' was not measured (measured: nothing)"),
        ({}, ["--reason", " "], "results/run.json: --reason is empty"),
        ({}, ["--all"], "name the cases to update, or --all for every case of the record"),
    ],
)
def test_what_update_refuses_at_once(
    place: Path,
    change: dict[str, object],
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved(Path("results"), record(**change))

    assert accept(path, *words) == 2
    assert capsys.readouterr().err.startswith(f"perfline: error: {message}")
    assert not Path("baselines").exists()


def test_all_updates_every_case_of_the_record(place: Path) -> None:
    path = saved(Path("results"), record(case_record(), case_record("llama3-8b", "dummy")))

    assert run("baselines", "update", "--all", "--run", str(path), "--reason", "why") == 0

    assert stored().case == "tiny"
    assert stored("llama3-8b-dummy").case_digest == packaged("llama3-8b").digest("dummy")


def test_update_of_an_empty_record_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(Path("results"), record(cases={}))

    assert run("baselines", "update", "--all", "--run", str(path), "--reason", "why") == 2
    assert capsys.readouterr().err == (
        "perfline: error: results/run.json: holds no case; run pytest again\n"
    )


def test_a_case_of_ones_own_is_found_through_case_dir(place: Path) -> None:
    packaged_yaml = packaged().source.read_text()
    Path("mine").mkdir()
    Path("mine/mine.yaml").write_text(packaged_yaml.replace("case: tiny\n", "case: mine\n"))
    mine = dataclasses.replace(case_record(), case="mine")
    path = saved(Path("results"), record(mine))
    words = ["baselines", "update", "mine", "--run", str(path), "--reason", "why"]

    assert run(*words) == 2
    assert run(*words, "--case-dir", "mine") == 0
    assert stored("mine").values("p_val_core") == (500.0,)


def test_updates_at_once_lose_none(place: Path) -> None:
    """Sixteen writers to two machines' files, eight sessions each."""

    def add(number: int) -> int:
        speeds = metrics(1000.0 + number)
        environment = Environment(f"{MACHINE}-{number % 2}", "Test CPU", "cpu", dict(CONTEXT))
        whole = record(case_record(metrics=speeds), environment=environment)
        path = saved(Path("results"), whole, f"run-{number}.json")
        return accept(path, "--add")

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(add, range(16))) == [0] * 16

    for parity in (0, 1):
        machine = f"{MACHINE}-{parity}"
        kept = baseline.load(Path("baselines") / machine / "tiny.json").values("p_infer_core")
        assert sorted(kept) == [1000.0 + number for number in range(parity, 16, 2)]
        assert [p.name for p in (Path("baselines") / machine).iterdir()] == ["tiny.json"]


def test_an_accuracy_only_update_shows_what_changes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accept(saved(Path("results"), record())) == 0
    capsys.readouterr()
    fewer = case_record(metrics={}, accuracy={"eager": answers([7])})

    assert accept(saved(Path("results"), record(fewer))) == 0

    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1:3]] == ["metric", "acc_val"]
    assert printed[3:5] == ["  throughput: kept", "  acc_infer: kept"]
    assert stored().values("p_infer_core") == (1000.0,)


def test_the_compile_time_says_whether_the_cache_was_cold(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = case_record(notes={"compile_cache": "cold"})

    assert accept(saved(Path("results"), record(measured))) == 0

    assert "  compile_time (new: cold cache)  s " in capsys.readouterr().out


@pytest.mark.parametrize("again", [False, True], ids=["first", "replaced"])
def test_an_update_of_several_cases_is_all_or_nothing(
    place: Path, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["baselines", "update", "tiny", "llama3-8b", "--reason", "why", "--accept-regression"]
    both = (case_record(), case_record("llama3-8b", "dummy"))
    saved(Path("results"), record(*both))
    if again:
        assert run(*words) == 0
        faster = dataclasses.replace(both[0], metrics=metrics(1001.0))
        saved(Path("results"), record(faster, both[1]))
    before = {path: path.read_bytes() for path in Path("baselines").rglob("*.json")}
    capsys.readouterr()
    save = baseline.save

    def disk_full(path: Path, held: baseline.Baseline) -> None:
        if path.name.startswith("llama3"):
            assert (Path("baselines") / MACHINE / "tiny.json").read_bytes() not in before.values()
            raise BaselineError(f"{path}: cannot be written: No space left on device")
        save(path, held)

    monkeypatch.setattr(baseline, "save", disk_full)

    assert run(*words) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (
        "",
        f"perfline: error: baselines/{MACHINE}/llama3-8b-dummy.json: cannot be written: No space "
        "left on device; nothing was changed\n",
    )
    files = {path: path.read_bytes() for path in Path("baselines").rglob("*") if path.is_file()}
    assert files == before


def test_what_cannot_be_put_back_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(Path("results"), record(case_record(), case_record("llama3-8b", "dummy")))
    save = baseline.save

    def gone(path: Path, held: baseline.Baseline) -> None:
        if path.name.startswith("llama3"):
            (path.parent / "tiny.json").unlink()  # so that it cannot be removed
            (path.parent / "tiny.json").mkdir()
            raise BaselineError(f"{path}: cannot be written: No space left on device")
        save(path, held)

    monkeypatch.setattr(baseline, "save", gone)

    words = ["baselines", "update", "tiny", "llama3-8b", "--reason", "why", "--run", str(path)]
    assert run(*words) == 2
    assert capsys.readouterr().err.endswith(
        f"; these hold the new run: baselines/{MACHINE}/tiny.json\n"
    )


def test_a_broken_baseline_is_replaced_when_it_is_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(Path("results"), record())
    assert accept(path) == 0
    file = Path("baselines") / MACHINE / "tiny.json"
    edited = file.read_text().replace('"first"', '"second"')
    file.write_text(edited)
    capsys.readouterr()

    for words in ([], ["--add"], ["--add", "--accept-regression"]):
        assert accept(path, *words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"perfline: error: {file}: was edited by hand")
        assert said.endswith("replaces a broken file with --accept-regression (no --add)\n")
        assert file.read_text() == edited

    assert accept(path, "--accept-regression") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f" replaced: the file was broken ({file}: was edited" in printed
    assert stored().sessions[0].reason == "first"


def test_a_baseline_that_is_a_directory_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("baselines") / MACHINE / "tiny.json"
    file.mkdir(parents=True)

    assert accept(saved(Path("results"), record()), "--accept-regression") == 2
    assert capsys.readouterr().err == (f"perfline: error: {file}: cannot be read: Is a directory\n")


def test_wrong_answers_are_refused_by_the_published_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record holds no verdict at all, and the published figures stand beside the baselines."""
    shutil.copytree(Path(__file__).parents[3] / "baselines/published", "baselines/published")
    path = saved(Path("results"), record(case_record(accuracy={"eager": answers(range(400))})))

    assert accept(path, "--accept-regression") == 2
    assert "case 'tiny': acc_val regressed -81.67 pp" in capsys.readouterr().err
    assert not (Path("baselines") / MACHINE / "tiny.json").exists()


def test_a_reason_becomes_one_printable_line(place: Path) -> None:
    path = saved(Path("results"), record())

    assert accept(path, "--reason", " torch\n2.13\x1b[31m\udc80 on\tnew driver ") == 0
    assert stored().sessions[0].reason == "torch 2.13 [31m on new driver"
    assert accept(path, "--reason", "\x00\n\udc80") == 2


def test_blanks_around_a_case_s_name_do_not_count(place: Path) -> None:
    path = saved(Path("results"), record())

    assert run("baselines", "update", " tiny ", "--run", str(path), "--reason", "why") == 0
    assert stored().case == "tiny"


# --- diff


def test_diff_counts_flips_and_context_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accept(saved(Path("results"), record())) == 0
    before = (Path("baselines") / MACHINE / "tiny.json").read_bytes()
    capsys.readouterr()
    changed = case_record(metrics=metrics(400.0), accuracy={"eager": answers([1, 2, 3])})
    newer = Environment(MACHINE, "Test CPU", "cpu", {"torch": "2.14.0", "commit": "def"})
    path = saved(Path("results"), record(changed, environment=newer))

    assert run("baselines", "diff", "tiny", "--run", str(path)) == 0

    printed = capsys.readouterr().out
    assert rows(printed)["p_infer_core"] == [
        "tok/s",
        tok_per_s(1000),
        tok_per_s(400),
        "-60.0",
        "%",
    ]
    assert "  eager answers: 3 of 400 flipped (3 right -> wrong)\n" in printed
    assert "  context: torch 2.13.0 -> 2.14.0\n" in printed
    assert "  update would refuse: results/run.json: case 'tiny': p_infer_core regressed" in printed
    assert (Path("baselines") / MACHINE / "tiny.json").read_bytes() == before


def test_diff_of_fewer_questions_compares_over_those_that_were_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = range(300, 400)  # what is wrong among the stored answers is not asked again
    assert (
        accept(saved(Path("results"), record(case_record(accuracy={"eager": answers(last)})))) == 0
    )
    capsys.readouterr()
    fewer = case_record(accuracy={"eager": answers([0], n=100)})
    saved(Path("results"), record(fewer))

    assert run("baselines", "diff", "tiny") == 0

    printed = capsys.readouterr().out
    assert rows(printed)["acc_val"] == ["%", "100.00", "99.00", "-1.00", "pp"]
    assert "  acc_val: over the 100 of 400 stored questions that were asked\n" in printed
    assert "  eager answers: 1 of 100 flipped (1 right -> wrong)\n" in printed


def test_diff_without_a_baseline_says_where_it_would_be(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(Path("results"), record(partial=True))

    assert run("baselines", "diff", "tiny", "--run", str(path)) == 0

    printed = capsys.readouterr().out
    assert f"  there is no baseline yet; it would be baselines/{MACHINE}/tiny.json\n" in printed
    assert "  update would refuse: results/run.json: is partial" in printed
    assert not Path("baselines").exists()


def test_diff_against_an_older_definition_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accept(saved(Path("results"), record())) == 0
    path = Path("baselines") / MACHINE / "tiny.json"
    baseline.save(path, dataclasses.replace(stored(), case_digest="sha256:0123456789abcdef"))
    capsys.readouterr()

    assert run("baselines", "diff", "tiny") == 0

    assert "  eager answers: not comparable: the case's definition has changed\n" in (
        capsys.readouterr().out
    )


def test_diff_of_an_unmeasured_case(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(Path("results"), record())

    assert run("baselines", "diff", "tinny") == 2
    assert capsys.readouterr().err == (
        "perfline: error: results/run.json: case 'tinny' was not measured; did you mean 'tiny'? "
        "(measured: tiny)\n"
    )


@pytest.mark.parametrize(
    ("words", "file", "told"),
    [
        (
            ("export", "--format=bencher"),
            {"schema": 1, "kind": "compare", "cases": {}},
            "is a record of perfline compare (expected the record of a pytest session); "
            "`perfline report` takes it",
        ),
        (
            ("report",),
            {"schema": 2, "machine": MACHINE, "case_digest": "sha256:0"},
            "is a baseline (expected the record of a pytest session); `perfline baselines show` "
            "takes its case",
        ),
        (
            ("baselines", "update", "tiny", "--reason=x", "--run"),
            {"machine_info": {}, "benchmarks": []},
            "is pytest-benchmark's JSON (expected the record of a pytest session); "
            "`pytest-benchmark compare` takes it; perfline's own record is what --results names",
        ),
    ],
)
def test_another_kind_of_file_is_told_by_its_name(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    file: dict[str, object],
    told: str,
) -> None:
    Path("x.json").write_text(json.dumps(file))

    assert run(*words, "x.json") == 2

    assert capsys.readouterr().err == f"perfline: error: x.json: {told}\n"


def test_a_record_in_a_baseline_s_place_is_told_by_its_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(Path("baselines") / MACHINE, record(), "tiny.json")

    assert run("baselines", "show") == 2

    assert "is the record of a pytest session (expected a baseline)" in capsys.readouterr().err


# --- show


def test_show_prints_sessions_metrics_and_answers(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = case_record(accuracy={"eager": answers([1, 2, 3, 4])})
    assert accept(saved(Path("results"), record(wrong))) == 0
    louder = case_record(metrics=metrics(1210.0), accuracy={})
    assert accept(saved(Path("results"), record(louder)), "--add") == 0
    capsys.readouterr()

    assert run("baselines", "show", "tiny") == 0

    printed = capsys.readouterr().out
    assert printed.startswith(
        f"tiny (fp32, real weights) on {MACHINE}\n"
        f"  baselines/{MACHINE}/tiny.json\n"
        f"  case {packaged().digest()}\n\n"
        "  session     commit        torch   reason\n"
        "  2026-11-22  abc123456789  2.13.0  first\n"
        "  2026-11-22  abc123456789  2.13.0  first\n\n"
    )
    shown = rows(printed)
    assert shown["metric"] == ["unit", "stored", "sessions"]
    assert shown["p_infer_core"] == ["tok/s", tok_per_s(1100), "2"]  # geometric, as it is judged
    assert shown["graphs"] == ["count", "2", "2"]
    assert shown["compile_time"] == ["s", number(9.5, "s"), "2"]
    assert shown["accuracy"] == ["full-vocab", "letters", "date", "reason"]
    assert shown["eager"] == [*["396/400", "=", "99.00", "%"] * 2, "2026-11-22", "first"]


def test_show_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accept(saved(Path("results"), record())) == 0
    capsys.readouterr()

    assert run("baselines", "show", "--json") == 0

    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["path"] == f"baselines/{MACHINE}/tiny.json"
    assert shown["weights"] == "real"
    assert shown["metrics"]["p_infer_core"] == {"value": 1000.0, "unit": "tok/s"}
    assert shown["accuracy"]["inductor"]["questions"] == 400
    assert shown["accuracy"]["inductor"]["correct_letters"] == 400
    assert shown["sessions"][0]["context"] == {"torch": "2.13.0"}


def test_show_of_nothing_stored(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("baselines", "show") == 2
    assert capsys.readouterr().err == (
        "perfline: error: baselines: no such directory of baselines; name it with --baselines, or "
        "store a first one with `perfline baselines update`\n"
    )
    Path("baselines").mkdir()
    assert run("baselines", "show") == 0
    assert capsys.readouterr().out == (
        "baselines: holds no baseline yet; `perfline baselines update` stores one\n"
    )
    assert run("baselines", "show", "tiny") == 2
    assert capsys.readouterr().err == (
        "perfline: error: baselines: holds no baseline of case 'tiny' (there: none)\n"
    )


# --- help


def test_every_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parsers, told = [cli._parser()], 0
    while parsers:
        parser = parsers.pop()
        assert max(map(len, parser.format_help().splitlines())) <= 80, parser.prog
        told += 1
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    assert told == 16


# --- check


def unfolded(text: str) -> str:
    """Every message on one line, as it was before it was folded for the terminal."""
    return re.sub(r"\n {2,}", " ", text)


def test_check_of_good_files_lists_what_is_missing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accept(saved(Path("results"), record())) == 0
    capsys.readouterr()

    assert run("baselines", "check") == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if "`" not in line) <= 80
    assert unfolded(shown) == (
        f"missing: {MACHINE} has no baseline of case 'deepseek-7b'; run pytest there, then "
        '`perfline baselines update deepseek-7b --run results/run.json --reason "..."`\n'
        f"missing: {MACHINE} has no baseline of case 'llama3-8b'; run pytest there, then "
        '`perfline baselines update llama3-8b --run results/run.json --reason "..."`\n'
        "baselines: 1 baseline and 0 published checked: 0 wrong, 2 missing\n"
    )
    assert run("baselines", "check", "--strict") == 1


def test_a_clone_s_own_baselines_are_all_of_known_cases(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of the slim cases, too, which are loaded by name alone."""
    own = Path(__file__).parents[3] / "baselines"

    assert run("baselines", "check", f"--baselines={own}") == 0
    assert " 0 wrong, " in capsys.readouterr().out


def test_check_finds_stale_unused_and_broken_ones(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = record(case_record(), case_record("llama3-8b", "dummy"))
    path = saved(Path("results"), whole)
    assert run("baselines", "update", "--all", "--run", str(path), "--reason", "why") == 0
    home = Path("baselines") / MACHINE
    old = dataclasses.replace(stored(), case_digest="sha256:0123456789abcdef")
    baseline.save(home / "tiny.json", old)
    baseline.save(home / "gone-dummy.json", dataclasses.replace(old, case="gone"))
    torn = (home / "llama3-8b-dummy.json").read_text()[:100]
    (home / "llama3-8b-dummy.json").write_text(torn)
    (home.parent / "published").mkdir()
    (home.parent / "published/tiny.json").write_text('{"schema": 1, "case": "tiny"}')
    capsys.readouterr()

    assert run("baselines", "check") == 1

    printed = unfolded(capsys.readouterr().out).splitlines()
    assert printed[0] == (
        f"unused: baselines/{MACHINE}/gone-dummy.json: there is no case 'gone'; `perfline "
        f"baselines remove gone --machine {MACHINE} --dummy`, or name its YAML's directory with "
        "--case-dir"
    )
    assert printed[1].startswith(f"broken: baselines/{MACHINE}/llama3-8b-dummy.json: is torn or")
    assert printed[2] == (
        f"stale: baselines/{MACHINE}/tiny.json: is of an older definition of the case "
        f"(sha256:0123456789abcdef, tiny.yaml is now {packaged().digest()}); run pytest on "
        f'{MACHINE}, then `perfline baselines update tiny --run results/run.json --reason "..."`'
    )
    assert printed[3].startswith("broken: baselines/published/tiny.json: key 'source' is missing")
    assert printed[-1] == "baselines: 3 baselines and 1 published checked: 4 wrong, 1 missing"


def test_the_repository_s_own_published_figures_pass(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = Path(__file__).parents[3] / "baselines/published"
    shutil.copytree(published, "baselines/published")

    assert run("baselines", "check") == 0
    assert capsys.readouterr().out == (
        f"baselines: 0 baselines and {len(list(published.glob('*.json')))} published checked: "
        "0 wrong, 0 missing\n"
    )


def test_what_check_says_to_type_works_when_pasted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path("my cases")
    own.mkdir()
    mine_yaml = packaged().source.read_text().replace("case: tiny\n", "case: mine\n")
    (own / "mine.yaml").write_text(mine_yaml)
    mine = dataclasses.replace(case_record(), case="mine")
    path = saved(Path("results"), record(case_record(), mine))
    assert accept(path, "--baselines", "kept here") == 0
    capsys.readouterr()

    assert run("baselines", "check", "--case-dir", "my cases", "--baselines", "kept here") == 0

    shown = unfolded(capsys.readouterr().out)
    said = next(line for line in shown.splitlines() if "'mine'" in line)
    command = said.split("`")[1]
    assert command == (
        'perfline baselines update mine --run results/run.json --reason "..." '
        "--case-dir='my cases' --baselines='kept here'"
    )
    assert run(*shlex.split(command)[1:]) == 0
    assert (Path("kept here") / MACHINE / "mine.json").exists()


# --- remove


def test_remove_deletes_the_one_it_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(Path("results"), record(case_record(), case_record("llama3-8b", "dummy")))
    assert run("baselines", "update", "--all", "--run", str(path), "--reason", "why") == 0
    capsys.readouterr()

    assert run("baselines", "remove", "llama3-8b", "--machine", MACHINE) == 2
    assert capsys.readouterr().err == (
        f"perfline: error: baselines/{MACHINE}/llama3-8b.json: no such baseline to remove "
        f"(there: {MACHINE}/llama3-8b-dummy.json, {MACHINE}/tiny.json)\n"
    )
    assert run("baselines", "remove", "llama3-8b", "--machine", MACHINE, "--dummy") == 0
    removed = f"baselines/{MACHINE}/llama3-8b-dummy.json"
    assert capsys.readouterr().out == f"removed: {removed}\nnext: git add {removed}\n"
    assert [p.name for p in (Path("baselines") / MACHINE).iterdir()] == ["tiny.json"]


@pytest.mark.parametrize("machine", ["published", "../elsewhere", "."])
def test_remove_touches_nothing_else(place: Path, machine: str) -> None:
    for directory in ("baselines/published", "elsewhere"):
        Path(directory).mkdir(parents=True)
        (Path(directory) / "tiny.json").write_text("{}")
    Path("baselines/tiny.json").write_text("{}")

    assert run("baselines", "remove", "tiny", "--machine", machine) == 2
    assert len(list(Path().rglob("tiny.json"))) == 3


# --- prompt


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory for case ``tiny``: one token a byte, two subjects with their questions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    home = tmp_path_factory.mktemp("data") / "tiny_mmlu"
    weights = home / "tiny_hf"
    weights.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(weights / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (weights / "tokenizer_config.json").write_text(json.dumps(named))
    (weights / "config.json").write_text(json.dumps({"model_type": "llama"}))
    questions = home / "mmlu_dataset/data"
    for split, rows in (("dev", 5), ("test", 3)):
        (questions / split).mkdir(parents=True)
        for subject in ("tall_towers", "deep_seas"):
            text = "".join(f'"Wie hoch, „{i}“?",None,{i},c,d,B\n' for i in range(rows))
            (questions / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")
    # Too long for five shots of 2048 bytes in all.
    long = f'"{"x" * 1750}",None,2,c,d,C\n'
    with (questions / "test/deep_seas_test.csv").open("a", encoding="utf-8") as file:
        file.write(long)
    return home.parent


SHOT = "Wie hoch, „{i}“?\nA. None\nB. {i}\nC. c\nD. d\nAnswer:"


def test_prompt_prints_the_text_byte_for_byte(
    checkpoint: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run("prompt", "tiny", "tall_towers", "2", "--data-dir", str(checkpoint)) == 0

    printed = capsysbinary.readouterr()
    head = "The following are multiple choice questions (with answers) about  tall towers.\n\n"
    shots = "".join(SHOT.format(i=i) + " B\n\n" for i in range(5))
    assert printed.out.decode() == head + shots + SHOT.format(i=2)
    tokens = len(printed.out)  # one a byte
    told = f"\ntall_towers/2: 5 of 5 shots kept, {tokens} tokens, label B\n"
    assert printed.err.decode().startswith(told)


def test_prompt_says_which_shots_were_dropped(
    checkpoint: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run("prompt", "tiny", "deep_seas", "3", "--data-dir", str(checkpoint)) == 0

    printed = capsysbinary.readouterr()
    assert printed.out.count(b"Answer:") == 4
    assert len(printed.out) < 2048
    told = f"\ndeep_seas/3: 3 of 5 shots kept, {len(printed.out)} tokens, label C\n"
    assert printed.err.decode().startswith(told)


def test_prompt_ids_are_the_text_s_tokens(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFLINE_DATA_DIR", str(checkpoint))

    assert run("prompt", "tiny", "tall_towers", "0", "--ids") == 0

    out, err = capsys.readouterr()
    ids = [int(word) for word in out.split()]
    assert f", {len(ids)} tokens," in err
    assert len({ids[i] for i in (0, len("The following are multiple choice ques"))}) == 2
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("subject", "index", "message"),
    [
        (
            "tall_tower",
            "0",
            "has no subject 'tall_tower'; did you mean 'tall_towers'? "
            "(2 subjects: deep_seas, tall_towers)",
        ),
        ("deep_seas", "4", "subject 'deep_seas' has no question 4; expected 0 to 3"),
        ("tall_towers", "-1", "subject 'tall_towers' has no question -1; expected 0 to 2"),
    ],
)
def test_prompt_of_what_is_not_there(
    checkpoint: Path, subject: str, index: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prompt", "tiny", "--data-dir", str(checkpoint), "--", subject, index) == 2

    questions = checkpoint / "tiny_mmlu/mmlu_dataset/data"
    assert capsys.readouterr().err == f"perfline: error: {questions}: {message}\n"


def test_prompt_asks_of_a_task_that_the_case_has_not_how_it_is_scored(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def letters(case: Case, encode: object) -> tuple[None, dict[str, str]]:
        asked.append(case.task_names)
        return None, {}

    monkeypatch.setattr(prompts, "case_letters", letters)
    assert run("prompt", "tiny", "mmlu_lm_eval/tall_towers", "2", f"--data-dir={checkpoint}") == 0
    assert asked == [("mmlu", "mmlu_lm_eval")]


def test_prompt_says_that_letters_are_scored_by_continuation(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "answer 'A' is 2 tokens"
    monkeypatch.setattr(prompts, "case_letters", lambda case, encode: (None, {"mmlu": why}))
    assert run("prompt", "tiny", "tall_towers", "2", "--data-dir", str(checkpoint)) == 0
    said = capsys.readouterr().err
    assert f"letters are scored by continuation: {why}\n" in said
    assert "\nA: ' A', tokens " in said


@pytest.mark.parametrize("asked", ["mmlu/tall_towers/2", "tall_towers/2"])
def test_prompt_takes_a_question_s_task_and_id(
    checkpoint: Path, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prompt", "tiny", asked, "--data-dir", str(checkpoint)) == 0
    assert "about  tall towers." in capsys.readouterr().out
    assert run("prompt", "tiny", "mmlu_lm_eval/tall_towers/2", f"--data-dir={checkpoint}") == 0
    assert "about tall towers." in capsys.readouterr().out


def mmlu_asks(about: str) -> str:
    shots = "".join(SHOT.format(i=i) + " B\n\n" for i in range(5))
    return f"{about} tall towers.\n\n{shots}{SHOT.format(i=1)}"


ABOUT = "The following are multiple choice questions (with answers) about"
FOUR = "A. a\nB. b\nC. c\nD. d\n"
CHINESE = "question,A,B,C,D,answer\n" + " 几？ ,a,b,c,d,C\n" * 5
PRO = [
    {"question_id": i, "question": "Why?", "category": "law", "options": ["a", "b", "c"]}
    | {"answer_index": 2}
    for i in range(5)
]
ARC = {"id": "r", "question": "Why?", "choices": {"text": ["x", "y", "z"], "label": list("123")}}
ENDS = {"activity_label": "Cups", "ctx_a": "A cup.", "ctx_b": "it", "endings": list("wxyz")}
PROMPTS: dict[str, tuple[dict[str, object], str]] = {
    "mmlu/tall_towers/1": ({}, mmlu_asks(f"{ABOUT} ")),
    "mmlu_lm_eval/tall_towers/1": ({}, mmlu_asks(ABOUT)),
    "mmlu_pro/law/0": (
        {f"mmlu_pro/data/{split}-0.parquet": PRO for split in ("test", "validation")},
        "Why?\nA. a\nB. b\nC. c\nAnswer: C\n\n" * 5 + "Why?\nA. a\nB. b\nC. c\nAnswer:",
    ),
    "ceval/law/4": (
        dict.fromkeys(("ceval/dev/law_dev.csv", "ceval/val/law_val.csv"), CHINESE),
        "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
        + f"几？\n{FOUR}答案： C\n\n" * 5
        + f"几？\n{FOUR}答案：",
    ),
    "cmmlu/anatomy/4": (
        dict.fromkeys(
            ("cmmlu/dev/anatomy.csv", "cmmlu/test/anatomy.csv"),
            CHINESE.replace("question", "Question").replace("answer", "Answer"),
        ),
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"
        + f"几？\n{FOUR}答案： C\n\n" * 5
        + f"几？\n{FOUR}答案：",
    ),
    "arc_easy/arc_easy/0": (
        {"ai2_arc/ARC-Easy/test-0.parquet": [ARC | {"answerKey": "2"}]},
        "Question: Why?\nAnswer:",
    ),
    "arc_challenge/arc_challenge/0": (
        {"ai2_arc/ARC-Challenge/test-0.parquet": [ARC | {"answerKey": "2"}]},
        "Question: Why?\nAnswer:",
    ),
    "hellaswag/hellaswag/0": (
        {"hellaswag/data/validation-0.parquet": [ENDS | {"label": "3"}]},
        "Cups: A cup. It",
    ),
}


def test_every_packaged_task_has_a_prompt_here() -> None:
    assert {asked.partition("/")[0] for asked in PROMPTS} == set(packaged_tasks())


@pytest.mark.parametrize("asked", PROMPTS)
def test_prompt_shows_any_packaged_task_s_question(
    checkpoint: Path, tmp_path: Path, asked: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    files, expected = PROMPTS[asked]
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    for name, rows in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            path.write_text(rows, encoding="utf-8")
        else:
            table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
            pytest.importorskip("pyarrow.parquet").write_table(table, path)

    assert run("prompt", "tiny", asked, f"--data-dir={tmp_path}") == 0
    printed = capsysbinary.readouterr()
    assert printed.out.decode() == expected
    assert f"{len(printed.out)} tokens".encode() in printed.err  # one a byte
    assert run("prompt", "tiny", asked, f"--data-dir={tmp_path}", "--ids") == 0
    assert len(capsysbinary.readouterr().out.split()) == len(printed.out)


def test_prompt_takes_the_id_that_a_row_has(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sums").mkdir()
    rows = [
        {"key": key, "area": area, "q": f"{key} =", "o": ["1", "2"], "a": 0}
        for key, area in (("Mercury_7", "small"), ("a/8", "small"), (70, "large"))
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "sums" / "test.jsonl").write_text(text)
    (tmp_path / "sums.yaml").write_text(
        "name: sums\nversion: 1\nsource: x\nid: key\nsubject: area\nquestion: '{q}'\n"
        "choices: o\nanswer: a\nanswer_is: index\nshots: 0\n"
        "data: {path: sums, format: jsonl, test: test.jsonl}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "case: mine\ntasks: [sums.yaml]\n"
        "model: {case_dir: tiny_mmlu, weight_dir: tiny_hf, precision: fp32, "
        "nominal_parameters: 1.0e+6}\n"
    )
    places = (f"--data-dir={tmp_path}", f"--case-dir={tmp_path}")
    for asked, key in (
        ("sums/Mercury_7", "Mercury_7"),
        ("sums/a/8", "a/8"),
        ("sums/70", "70"),
        ("sums/small/0", "Mercury_7"),
        ("large/0", "70"),
    ):
        assert run("prompt", "mine", asked, *places) == 0
        assert capsys.readouterr().out.startswith(f"{key} =")
    for asked, told in (
        (
            "sums/Mercury_8",
            "no row of task 'sums' has the id 'Mercury_8'; did you mean 'Mercury_7'?",
        ),
        ("sums/71", "no row of task 'sums' has the id '71'"),
        ("sums/big/0", "has no subject 'big' (2 subjects: large, small)"),
    ):
        assert run("prompt", "mine", asked, *places) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("mmul/tall_towers/2", "task 'mmul' is not known; did you mean 'mmlu'? (known: "),
        ("tall_towers", "tall_towers: names no question; expected TASK/SUBJECT/INDEX, such as mm"),
        ("mmlu/tall_towers/x", "mmlu/tall_towers/x: names no question; expected TASK/SUBJECT/IN"),
        ("a/mmlu/tall_towers/2", "a/mmlu/tall_towers/2: names no question; expected TASK/SUBJECT"),
        ("ceval/law/0", "case tiny: no questions of task 'ceval' at "),
    ],
)
def test_prompt_of_what_no_task_asks(
    checkpoint: Path, asked: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prompt", "tiny", asked, "--data-dir", str(checkpoint)) == 2
    assert capsys.readouterr().err.startswith(f"perfline: error: {message}")


def test_prompt_without_weights_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    assert run("prompt", "llama3-8b", "anatomy", "0", "--data-dir", str(tmp_path)) == 2

    target = tmp_path / "llama3_8b_mmlu/llama3_8b_hf"
    assert capsys.readouterr().err == (
        f"perfline: error: case llama3-8b: no weights at {target}; get it with: hf download "
        f"meta-llama/Meta-Llama-3-8B --local-dir {target}\n"
    )


@pytest.mark.parametrize(
    "words",
    [("prompt", "tiny", "x", "0"), ("doctor", "--cases=tiny"), ("report", "results/run.json")],
)
def test_a_data_directory_that_is_not_there_is_refused(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    file = saved(Path("results"), record())
    cure = "correct it, make that directory, or leave it out\n"

    assert run(*words, "--data-dir", "/no/such") == 2
    assert capsys.readouterr().err == (
        f"perfline: error: --data-dir=/no/such, which is not there; {cure}"
    )
    monkeypatch.setenv("PERFLINE_DATA_DIR", str(file))
    assert run(*words) == 2
    assert capsys.readouterr().err == (
        f"perfline: error: $PERFLINE_DATA_DIR is {file}, which is no directory; {cure}"
    )


def test_prompt_with_a_broken_tokenizer_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "data")
    weights = tmp_path / "data/tiny_mmlu/tiny_hf"
    (weights / "tokenizer.json").write_text("{")

    assert run("prompt", "tiny", "tall_towers", "0", "--data-dir", str(tmp_path / "data")) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"perfline: error: {weights}: the tokenizer cannot be loaded: ")


def test_a_reader_that_leaves_early_makes_no_pass_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys\n"
        "from perfline.cli import main as cli\n"
        "cli._check = lambda args: (print('wrong' * 99999), STATUS)[1]\n"
        "sys.exit(cli.main(['baselines', 'check']))"
    )
    for status, seen in (("1", {1, 141}), ("0", {0, 141})):
        done = subprocess.run(
            f"{shlex.quote(sys.executable)} -c {shlex.quote(code.replace('STATUS', status))} | true"
            "; exit ${PIPESTATUS[0]}",
            shell=True,
            executable="/bin/bash",
            check=False,
        )
        assert done.returncode in seen
    assert "Traceback" not in capfd.readouterr().err


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(args: object) -> int:
        raise PermissionError(13, "Permission denied", "/root/x.json")

    monkeypatch.setattr("perfline.cli.main._check", refused)
    assert run("baselines", "check") == 2
    assert capsys.readouterr().err == "perfline: error: /root/x.json: Permission denied\n"


def test_what_was_typed_is_cut_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("\x1b[2J" + "x" * 2_000)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "... (20" in said
    assert len(said) < 1_000
