"""Prompts, choices and right answers are lm-evaluation-harness's, byte for byte (extra 'bench')."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from perfline.cases import data
from perfline.cases.case import load_cases
from perfline.engines import hf
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.engines.shared_prefix import SharedPrefixRunner
from perfline.tasks.answers import LETTERS, Answers
from perfline.tasks.prompts import (
    Prompt,
    Subject,
    build_prompts,
    hf_encode,
    load_subjects,
    render_prompt,
)
from perfline.tasks.task import load_task

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra 'bench' (lm-eval)")
Rows = list[dict[str, Any]]


def question(i: int, split: str) -> str:
    odd, even = f"  {split} {i} of {{x}}?\t\n", f'{split} {i}\n\nline "two", 甲'
    return odd if i % 2 else even


def mmlu_row(i: int, split: str) -> dict[str, Any]:
    choices = [f" a{i}", f"b{i} ", "None", "d"]
    return {"question": question(i, split), "choices": choices, "answer": i % 4}


def chinese_row(
    i: int, split: str, ask: str = "question", answer: str = "answer"
) -> dict[str, Any]:
    choices = {letter: f"{letter}乙{i} " for letter in "ABCD"}
    return {ask: question(i, split), **choices, answer: "ABCD"[i % 4]}


def pro_row(i: int, split: str) -> dict[str, Any]:
    n = 3 + i % 8
    options = [f"{split} option {k}" for k in range(n)]
    right = {"answer": LETTERS[i % n], "answer_index": i % n}
    return {"question_id": i, "question": question(i, split), "options": options} | right


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_mmlu(folder: Path, split: str, rows: Rows) -> None:
    cells = [[row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in rows]
    write_csv(folder / split / f"anatomy_{split}.csv", cells)


def write_headed(path: Path, rows: Rows) -> None:
    write_csv(path, [["", *rows[0]], *([i, *row.values()] for i, row in enumerate(rows))])


def write_ceval(folder: Path, split: str, rows: Rows) -> None:
    write_headed(folder / split / f"law_{split}.csv", rows)


def write_cmmlu(folder: Path, split: str, rows: Rows) -> None:
    write_headed(folder / split / "anatomy.csv", rows)


def write_pro(folder: Path, split: str, rows: Rows) -> None:
    filed = [row | {"category": "law"} for row in rows]
    write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", filed)


def arc_row(i: int, split: str) -> dict[str, Any]:
    n = 3 + i % 3
    labels = list("12345" if i % 2 else "ABCDE")[:n]
    choices = {"text": [f"{split} {i} choice {k}" for k in range(n)], "label": labels}
    right = {"answerKey": labels[i % n]}
    return {"id": f"r{i}", "question": question(i, split), "choices": choices} | right


def hellaswag_row(i: int, split: str) -> dict[str, Any]:
    endings = [f"[step] ends  as {k} [title] it   began. " for k in range(4)]
    return {
        "activity_label": "Washing up",
        "ctx_a": f"{split} {i} [header] How to wash [title] Take a cup.",
        "ctx_b": "the Cup" if i % 2 else "",
        "endings": endings,
        "label": str(i % 4),
    }


def write_parquet(path: Path, rows: Rows) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arc(folder: Path, split: str, rows: Rows) -> None:
    write_parquet(folder / "ARC-Challenge" / f"{split}-00000-of-00001.parquet", rows)
    write_parquet(folder / "ARC-Easy" / f"{split}-00000-of-00001.parquet", rows)


def write_hellaswag(folder: Path, split: str, rows: Rows) -> None:
    write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)


def theirs(
    files: Sequence[str], splits: dict[str, Rows], folder: Path, shots: int
) -> tuple[Any, Any]:
    """Their task, of their own files, on our rows; by question, its (prompt, answer) pairs."""
    from lm_eval.api.task import ConfigurableTask

    said: dict[str, Any] = {}
    for name in files:
        path = Path(lm_eval.__file__).parent / "tasks" / name
        said |= yaml.safe_load(path.read_text(encoding="utf-8").replace("!function ", ""))
        for key in ("doc_to_text", "doc_to_choice", "process_docs"):
            if str(said.get(key)).startswith("utils."):
                spec = importlib.util.spec_from_file_location("utils", path.with_name("utils.py"))
                assert spec is not None
                assert spec.loader is not None
                spec.loader.exec_module(utils := importlib.util.module_from_spec(spec))
                said[key] = getattr(utils, key)
    paths = {}
    for split, rows in splits.items():
        paths[split] = str(folder / f"{split}.json")
        Path(paths[split]).write_text("\n".join(map(json.dumps, rows)))
    dropped = ("include", "tag", "task_alias", "dataset_name")
    said = {key: value for key, value in said.items() if key not in dropped}
    if said.get("validation_split") not in splits:
        said.pop("validation_split", None)
    said |= {"dataset_path": "json", "dataset_kwargs": {"data_files": paths}, "num_fewshot": shots}
    task = ConfigurableTask(config=said)
    task.build_all_requests(rank=0, world_size=1)
    asked: dict[int, list[tuple[str, str]]] = {}
    for instance in task.instances:
        asked.setdefault(instance.doc_id, []).append(instance.args)
    return task, asked


TASKS: list[Any] = [
    (
        "mmlu_lm_eval",
        ["mmlu/default/_default_template_yaml", "mmlu/default/mmlu_anatomy.yaml"],
        ("dev", "test"),
        mmlu_row,
        write_mmlu,
    ),
    (
        "ceval",
        ["ceval/_default_ceval_yaml", "ceval/ceval-valid_law.yaml"],
        ("dev", "val"),
        chinese_row,
        write_ceval,
    ),
    (
        "cmmlu",
        ["cmmlu/_default_template_yaml", "cmmlu/cmmlu_anatomy.yaml"],
        ("dev", "test"),
        lambda i, split: chinese_row(i, split, "Question", "Answer"),
        write_cmmlu,
    ),
    (
        "mmlu_pro",
        ["leaderboard/mmlu_pro/mmlu_pro.yaml"],
        ("validation", "test"),
        pro_row,
        write_pro,
    ),
    ("arc_easy", ["arc/arc_easy.yaml"], ("train", "test"), arc_row, write_arc),
    (
        "arc_challenge",
        ["arc/arc_easy.yaml", "arc/arc_challenge.yaml"],
        ("train", "test"),
        arc_row,
        write_arc,
    ),
    (
        "hellaswag",
        ["hellaswag/hellaswag.yaml"],
        ("train", "validation"),
        hellaswag_row,
        write_hellaswag,
    ),
]


CONTINUED = [each for each in TASKS if load_task(each[0]).score == "continuation"]
LETTERED = [each for each in TASKS if each not in CONTINUED]


@pytest.fixture
def both(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any, Subject, Rows]:
    """Of a row of ``TASKS``: their task and what it asks, our reading, and the rows asked."""
    name, files, splits, row, write = request.param
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = {
        split: [row(i, split) for i in range(n)] for split, n in zip(splits, (5, 9), strict=True)
    }
    for split in splits:
        write(tmp_path, split, rows[split])
    own = load_task(name)
    (subject,) = load_subjects(tmp_path, own.shots, own)
    return *theirs(files, rows, tmp_path, own.shots), subject, rows[splits[1]]


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("both", TASKS, indirect=True, ids=[name for name, *_ in TASKS])
def test_every_prompt_is_theirs(both: tuple[Any, Any, Subject, Rows]) -> None:
    task, asked, subject, rows = both
    own = subject.task
    assert len(subject.test) == len(asked) == 9
    for ours in subject.test:
        prompt = render_prompt(subject, ours, own.shots)
        assert asked[ours.index] == [(prompt, f" {each}") for each in own.answers(ours.choices)]
        gold = task.doc_to_target(rows[ours.index])
        gold = int(gold) if str(gold).isdigit() else gold
        assert (LETTERS[gold] if isinstance(gold, int) else gold) == ours.label


def answered(
    both: tuple[Any, Any, Subject, Rows],
) -> tuple[list[Answers], list[Prompt], list[Any]]:
    """On the tiny model: our answers, plain and by shared prefixes, and their sums by question."""
    from lm_eval.models.huggingface import HFLM

    task, asked, subject, _ = both
    (case,) = load_cases(["tiny"])
    case = dataclasses.replace(case, tasks=(subject.task.name,))
    model = hf.load(case, current_device(), data.find_weights(case, None))
    encode = hf_encode(model.tokenizer, case.model.bos)
    continued = subject.task.name in model.without_letters
    prompts = build_prompts([subject], encode, case.mmlu, model.positions, continued)
    runner = SharedPrefixRunner(model.engine("eager"))
    ours_twice = [
        run_pass(model.engine("eager"), prompts, "last").answers,
        runner.run(prompts, runner.plan(prompts)).answers,
    ]
    lm = HFLM(model.module, tokenizer=model.tokenizer, add_bos_token=True, device="cpu")
    told = iter(lm.loglikelihood(task.instances, disable_tqdm=True))
    sums = [np.array([next(told)[0] for _ in asked[ours.index]]) for ours in subject.test]
    return ours_twice, prompts, sums


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("both", CONTINUED, indirect=True, ids=[name for name, *_ in CONTINUED])
def test_every_score_is_theirs(both: tuple[Any, Any, Subject, Rows]) -> None:
    """The sums by choice, and which choices ``acc`` and ``acc_norm`` take."""
    ours_twice, prompts, told = answered(both)
    for number, (ours, sums) in enumerate(zip(both[2].test, told, strict=True)):
        by_length = sums / [len(choice) for choice in ours.choices]
        own, other = (by_length, sums) if prompts[number].normalised else (sums, by_length)
        for found in ours_twice:
            scores = found.letter_logits[number, : len(sums)]
            np.testing.assert_allclose(scores, own, rtol=1e-4)
            letters = found.letters()[number] + found.argmax_letter[number]
            assert letters == LETTERS[own.argmax()] + LETTERS[other.argmax()]


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("both", LETTERED, indirect=True, ids=[name for name, *_ in LETTERED])
def test_every_answer_by_letter_is_theirs(both: tuple[Any, Any, Subject, Rows]) -> None:
    """The letters' logits are the log-probabilities of theirs, but for what all of them share."""
    ours_twice, _, told = answered(both)
    for number, sums in enumerate(told):
        for found in ours_twice:
            logits = found.letter_logits[number, : len(sums)]
            np.testing.assert_allclose(logits - logits.max(), sums - sums.max(), atol=1e-3)
            assert found.letters()[number] == LETTERS[sums.argmax()]
