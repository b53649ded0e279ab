from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from perfline.cases.case import load_cases
from perfline.cases.data import locate
from perfline.tasks.prompt_cache import cached_prompts
from perfline.tasks.prompts import Prompt, Question, Subject, build_prompts, load_subjects
from perfline.tasks.task import load_task
from samples import packaged


@pytest.fixture
def tiny():
    (case,) = load_cases(["tiny"])
    located = locate(case, None)
    return case, located.weights, load_subjects(located.mmlu, 5)


def build(subjects, log):
    def make():
        log.append("built")
        return [
            Prompt(q.id, q.subject, np.arange(3 + i % 7, dtype=np.int64), 5 - i % 2, q.label)
            for i, q in enumerate(q for s in subjects for q in s.test)
        ]

    return make


def same(one, other):
    return all(
        (a.id, a.subject, a.shots, a.label, a.ids.tolist(), a.ids.dtype)
        == (b.id, b.subject, b.shots, b.label, b.ids.tolist(), b.ids.dtype)
        for a, b in zip(one, other, strict=True)
    )


def test_prompts_are_tokenised_once_and_come_back_the_same(tiny, tmp_path):
    case, weights, subjects = tiny
    log: list[str] = []
    first = cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    second = cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    assert log == ["built"]
    assert same(first, second)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_another_setting_tokenizer_or_question_set_is_another_file(tiny, tmp_path):
    case, weights, subjects = tiny
    log: list[str] = []
    cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    other = dataclasses.replace(case, model=dataclasses.replace(case.model, bos=False))
    cached_prompts(other, weights, subjects, build(subjects, log), tmp_path)
    cached_prompts(case, weights, subjects[:2], build(subjects[:2], log), tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    cached_prompts(case, tmp_path / "hf", subjects, build(subjects, log), tmp_path)
    (tmp_path / "hf" / "added_tokens.json").write_text("{}")
    cached_prompts(case, tmp_path / "hf", subjects, build(subjects, log), tmp_path)
    assert log == ["built"] * 5


def test_a_changed_prompt_is_never_served_from_the_cache(tiny, tmp_path, monkeypatch):
    from perfline.tasks import prompts

    case, weights, subjects = tiny
    log: list[str] = []
    cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    original = prompts.render_prompt
    monkeypatch.setattr(prompts, "render_prompt", lambda s, q, shots: original(s, q, shots - 1))
    cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    assert log == ["built", "built"]


def test_a_local_build_of_the_same_version_is_another_tokenizer(tiny, tmp_path, monkeypatch):
    from importlib import metadata

    case, weights, subjects = tiny
    log: list[str] = []
    cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    read_text = metadata.PathDistribution.read_text
    monkeypatch.setattr(
        metadata.PathDistribution,
        "read_text",
        lambda self, name: (read_text(self, name) or "") + ("\n" if name == "RECORD" else ""),
    )
    cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    assert log == ["built", "built"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", b"text"])
def test_a_broken_cache_costs_the_tokenising_anew(tiny, tmp_path, damage):
    case, weights, subjects = tiny
    log: list[str] = []
    first = cached_prompts(case, weights, subjects, build(subjects, log), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert same(cached_prompts(case, weights, subjects, build(subjects, log), tmp_path), first)
    assert same(cached_prompts(case, weights, subjects, build(subjects, log), tmp_path), first)
    assert log == ["built", "built"]


def test_a_cache_that_cannot_be_written_is_no_error(tiny, tmp_path):
    case, weights, subjects = tiny
    (tmp_path / "file").write_text("")
    log: list[str] = []
    found = cached_prompts(case, weights, subjects, build(subjects, log), tmp_path / "file")
    assert len(found) == 780


def test_without_a_home_and_an_account_nothing_is_kept(tiny, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    case, weights, subjects = tiny
    log: list[str] = []
    assert len(cached_prompts(case, weights, subjects, build(subjects, log))) == 780
    assert log == ["built"]


@pytest.mark.parametrize("continued", [False, True], ids=["letters", "continued"])
def test_continuations_come_back_as_they_went(tmp_path, continued):
    task = dataclasses.replace(load_task("hellaswag" if not continued else "mmlu"), version=9)
    rows = tuple(Question("s", i, f"q{i}", ("ab", f"c{i} d", "e", "f"), "B") for i in range(3))
    subject = Subject("s", (), rows, task)

    def encode(texts):
        return [[ord(sign) for sign in text] for text in texts]

    case = packaged()
    made = build_prompts([subject], encode, case.mmlu, continued=continued)

    def ask():
        return cached_prompts(case, tmp_path, [subject], lambda: made, tmp_path, continued)

    ask()
    made_again = ask()

    assert made_again[0] is not made[0]
    for one, other in zip(made, made_again, strict=True):
        assert [c.ids.tolist() for c in one.continuations] == [
            c.ids.tolist() for c in other.continuations
        ]
        assert (one.normalised, one.tokens, one.task) == (
            other.normalised,
            other.tokens,
            other.task,
        )
    first = made[0]
    text = " A" if continued else " ab"
    assert first.continuations[0].ids.tolist() == [ord(sign) for sign in text]
    assert first.continuations[0].length == (1 if continued else 2)
    row = first.rows[0]
    assert row.ids.tolist() == [*first.ids.tolist(), *map(ord, text[:-1])]
    assert (row.tail, row.rows) == (len(text), (row,))
