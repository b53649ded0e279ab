"""A task is a YAML file: what it may say, how its rows are read, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from perfline.cases.case import load_cases
from perfline.cases.data import find_mmlu
from perfline.errors import CaseError, DataError, MissingData
from perfline.tasks.prompts import data_digest, load_subjects, question_set_digest, render_prompt
from perfline.tasks.task import (
    Task,
    find_rows,
    load_task,
    packaged_tasks,
    read_task,
    tasks_of,
)

OWN = """\
name: sums
version: 1
source: written for this test
data:
  path: sums
  format: jsonl
  test: test.jsonl
  shots: shots.jsonl
id: id
question: "{text}"
choices: options
choice_count: [2, 4]
answer: right
answer_is: index
description: "Sums.\\n\\n"
shots: 1
"""
ROW = {"id": "one", "text": "1 + 1 =", "options": ["2", "3"], "right": 0}


def own(tmp_path: Path, text: str = OWN, **rows: Sequence[object]) -> Task:
    """The task of ``text``, and rows for it in ``tmp_path``."""
    (tmp_path / "sums.yaml").write_text(text)
    files: dict[str, Sequence[object]] = {"test": [ROW], "shots": [{**ROW, "id": 7}], **rows}
    for name, lines in files.items():
        text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return read_task(tmp_path / "sums.yaml")


# --- where rows are looked for --------------------------------------------------------------------
def test_rows_are_found_in_the_data_dir_beside_the_task_and_last_in_the_hub_s_cache(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (case,) = load_cases(["tiny"])
    (tmp_path / "tasks").mkdir()
    task = own(tmp_path / "tasks", OWN.replace("  path: sums\n", "  path: sums\n  hub: me/sums\n"))
    given = tmp_path / "given"
    with pytest.raises(MissingData, match=r"case tiny: no questions of task 'sums' at") as caught:
        find_rows(case, task, given)
    assert caught.value.command == (
        f"hf download --repo-type dataset me/sums --local-dir {given}/sums"
    )
    cached = tmp_path / "hub" / "datasets--me--sums"
    snapshot = cached / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    for last in (
        snapshot,
        tmp_path / "tasks" / "sums",
        given / "sums",
        given / case.model.case_dir / "sums",
    ):
        last.mkdir(parents=True, exist_ok=True)
        assert find_rows(case, task, given) == last
    assert find_rows(case, task, None) == tmp_path / "tasks" / "sums"


def test_rows_of_nobody_are_to_be_copied(tmp_path):
    (case,) = load_cases(["tiny"])
    task = own(tmp_path)
    with pytest.raises(MissingData) as caught:
        find_rows(case, task, None)
    assert caught.value.command == "cp -r YOUR_QUESTIONS DATA_DIR/sums"


# --- MMLU -----------------------------------------------------------------------------------------


def test_mmlu_of_tiny_is_asked_as_it_was_before_tasks_were_files():
    subjects = load_subjects(find_mmlu(load_cases(["tiny"])[0], None))

    texts = [render_prompt(s, q, shots) for s in subjects for q in s.test for shots in range(6)]

    assert question_set_digest(subjects) == "sha256:e6cb34b8ea32a395"
    assert hashlib.sha256("\0".join(texts[5::6]).encode()).hexdigest() == (
        "0a2282b73896d074203719a065b15e198be8d193a53b7c2182f16f2827161c54"
    )


def test_the_form_of_lm_evaluation_harness_is_stripped(tmp_path):
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"easy_sums_{split}.csv").write_text('" 1 + 1 =\n",2,3,4 ,5,A\n')
    task = load_task("mmlu_lm_eval")

    (subject,) = load_subjects(tmp_path, 1, task)

    one = "1 + 1 =\nA. 2\nB. 3\nC. 4 \nD. 5\nAnswer:"
    about = "The following are multiple choice questions (with answers) about easy sums.\n\n"
    assert render_prompt(subject, subject.test[0], 1) == f"{about}{one} A\n\n{one}"
    assert task.score == "letters"


def test_a_file_with_the_name_of_a_packaged_task_is_refused(tmp_path):
    case = dataclasses.replace(
        load_cases(["tiny"])[0], source=tmp_path / "tiny.yaml", tasks=("my/ceval.yaml",)
    )
    with pytest.raises(
        CaseError, match=r"my/ceval\.yaml: a task that comes with perfline has this"
    ):
        tasks_of(case)


def test_every_packaged_task_is_read():
    assert {load_task(name).name for name in packaged_tasks()} == set(packaged_tasks())


# --- one's own ------------------------------------------------------------------------------------


def test_a_task_of_ones_own_becomes_prompts(tmp_path):
    more = {"id": "two", "text": "2 + 2 =", "options": ["3", "5", "4"], "right": "2"}
    task = own(tmp_path, test=[ROW, more])

    (subject,) = load_subjects(tmp_path, task=task)

    assert subject.name == "sums"
    assert [(q.id, q.label) for q in subject.test] == [("sums/0", "A"), ("sums/1", "C")]
    assert render_prompt(subject, subject.test[1], 1) == (
        "Sums.\n\n1 + 1 =\nA. 2\nB. 3\nAnswer: A\n\n2 + 2 =\nA. 3\nB. 5\nC. 4\nAnswer:"
    )


def test_subjects_may_stand_in_a_column(tmp_path):
    rows = [
        {**ROW, "id": str(n), "field": name} for n, name in enumerate(["Big Sums", "art", "art"])
    ]
    task = own(tmp_path, OWN + "subject: field\nsubjects: {big_sums: large sums}\n", test=rows)

    subjects = load_subjects(tmp_path, task=task)

    assert [q.id for s in subjects for q in s.test] == ["art/0", "art/1", "big_sums/0"]
    assert [len(s.dev) for s in subjects] == [1, 1]
    assert task.subject_words("big_sums") == "large sums"


def test_columns_may_be_inside_others_and_answers_be_labels(tmp_path):
    columns = "columns: {text: q.stem, options: q.choices.text, label: q.choices.label}"
    text = OWN.replace("  test:", f"  {columns}\n  test:")
    text = text.replace("answer_is: index", "answer_is: label\nlabels: label")
    choices = [{"text": "2", "label": "1"}, {"text": "3", "label": "2"}]
    row = {"id": 1, "q": {"stem": "1 + 2 =", "choices": choices}, "right": "2"}
    task = own(tmp_path, text, test=[row], shots=[row])

    (subject,) = load_subjects(tmp_path, task=task)

    assert (subject.test[0].text, subject.test[0].choices) == ("1 + 2 =", ("2", "3"))
    assert subject.test[0].label == "B"


def test_a_csv_may_have_a_header(tmp_path):
    text = OWN.replace("jsonl", "csv").replace("choices: options", "choices: [A, B]")
    own(tmp_path, text.replace("choice_count: [2, 4]\n", ""))
    for name in ("test", "shots"):
        (tmp_path / f"{name}.csv").write_text(",id,text,A,B,right\n0,x,None,2,3,1\n")

    (subject,) = load_subjects(tmp_path, task=read_task(tmp_path / "sums.yaml"))

    (question,) = subject.test
    assert (question.text, question.choices, question.label) == ("None", ("2", "3"), "B")


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_parquet_and_saved_datasets_are_read(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.Table.from_pylist([ROW])
    text = OWN.replace("jsonl", kind) if kind == "parquet" else OWN.replace(".jsonl", "")
    task = own(tmp_path, text.replace("format: jsonl", f"format: {kind}"))
    for name in ("test", "shots"):
        if kind == "parquet":
            parquet.write_table(table, tmp_path / f"{name}.parquet")
            continue
        (tmp_path / name).mkdir()
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (tmp_path / name / "state.json").write_text(json.dumps(state))
        with (
            pyarrow.OSFile(str(tmp_path / name / "data-00000-of-00001.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)

    (subject,) = load_subjects(tmp_path, task=task)

    assert (subject.test[0].choices, subject.test[0].label) == (("2", "3"), "A")
    (tmp_path / ("test.parquet" if kind == "parquet" else "test/state.json")).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"test.*is (not readable Parquet|no split that)"):
        load_subjects(tmp_path, task=task)


def test_the_digest_is_that_of_sha256sum(tmp_path):
    task = own(tmp_path)
    sums = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("shots.jsonl", "test.jsonl")
    )
    assert data_digest(tmp_path, task) == hashlib.sha256(sums.encode()).hexdigest()

    task = own(tmp_path, OWN.replace("shots: 1", "shots: 0"))
    alone = hashlib.sha256((tmp_path / "test.jsonl").read_bytes()).hexdigest()
    assert data_digest(tmp_path, task) == alone

    wrong = OWN.replace("  test:", f"  sha256: {{test.jsonl: '{'0' * 64}'}}\n  test:")
    with pytest.raises(DataError, match=rf"test\.jsonl: its sha256 is {alone}; the task expects 0"):
        load_subjects(tmp_path, task=own(tmp_path, wrong))
    load_subjects(tmp_path, task=own(tmp_path, wrong.replace("0" * 64, alone)))
    mistyped = wrong.replace("{test.jsonl", "{tset.jsonl")
    with pytest.raises(DataError, match=r"sums\.yaml: data\.sha256 names tset\.jsonl, which is no"):
        load_subjects(tmp_path, task=own(tmp_path, mistyped))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"{text}"', '"{text.__class__}"', r"'question' holds '\{text\.__class__\}'"),
        ('"{text}"', '"{text[0]}"', r"'question' holds '\{text\[0\]\}'"),
        ('"{text}"', '"{text!r}"', r"'question' holds '\{text!r\}'; expected a column's name in"),
        ('"{text}"', '"{text:>9999999}"', r"'question' holds '\{text:>9999999\}'"),
        ('"{text}"', '"{}"', r"'question' holds '\{\}'"),
        ('"{text}"', '"{text"', r"'question' is no template \(expected '\}' before end"),
        ('"Sums.', '"{word}', r"'description' names \{word\}; expected \{subject\} alone"),
        ("shots: 1", 'prompt: "{question}"', r"'prompt' has no \{choices\}"),
        ("[2, 4]", "[2, 11]", r"'choice_count' is \[2, 11\]; expected the least and the most"),
        ("[2, 4]", "[4, 2]", r"'choice_count' is \[4, 2\]"),
        ("choices: options", "choices: [a]", r"'choices' names 1 columns; expected 2 to "),
        ("is: index", "is: label", r"'answer_is' is label, and no column holds 'labels'"),
        ("is: index", "is: number", r"key 'answer_is' is \"number\" \(expected letter, index"),
        ("path: sums", "path: ../sums", r"key 'data\.path' is \"\.\./sums\""),
        ("path: sums", "path: /etc", r"key 'data\.path' is \"/etc\""),
        ("test: test", "test: ../test", r"key 'data\.test' is"),
        ("test: test.jsonl", "test: .", r"'data\.test' is '\.'; expected a file's name"),
        (
            "shots: shots.jsonl",
            "shots: '**.jsonl'",
            r"'data\.shots' is '\*\*\.jsonl'; expected a file",
        ),
        ("test: test.jsonl", "test: '{subject}{subject}'", r"'data\.test' is '\{subject\}\{sub"),
        ("  test:", "  sha256: {test.jsonl: abc}\n  test:", r"'data\.sha256' has 'abc' of test"),
        ("shots: shots", "shots: ../test", r"key 'data\.shots' is"),
        ("answer:", "anwser:", r"key 'anwser' is not known; did you mean 'answer'"),
        ("name: sums", "name: Sums", r"'name' is 'Sums'; expected"),
        ("name: sums", "name: other", r"key 'name' is 'other' \(expected 'sums', its file's\)"),
        ("name: sums", "include: sums.yaml", r"key 'include' leads back to this file"),
        ("name: sums", "include: ../sums.yaml", r"key 'include' is '\.\./sums\.yaml'"),
        ("name: sums", "clean: {text: exec}\nname: sums", r"key 'clean\.text' is \"exec\""),
        ("is: index", "is: &a index\nlabels: *a", "alias"),
    ],
)
def test_what_a_task_may_not_say_is_one_line(tmp_path, old, new, message):
    assert old in OWN
    with pytest.raises(CaseError, match=message) as caught:
        own(tmp_path, OWN.replace(old, new, 1))
    assert str(caught.value).startswith(str(tmp_path / "sums.yaml"))
    assert "\n" not in str(caught.value)


def test_an_unknown_task_is_named_with_its_nearest():
    with pytest.raises(CaseError, match=r"task 'mmlu_lm' is not known; did you mean 'mmlu"):
        load_task("mmlu_lm")


def changed(**values: object) -> dict[str, object]:
    return {**ROW, **values}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(options=["2"]), "has 1 choices; expected 2 to 4"),
        (changed(options=[str(n) for n in range(11)]), "has 11 choices; expected 2 to 4"),
        (changed(options=["2", " "]), "choice B is missing: it is empty"),
        (changed(options=["2", "3", "2"]), "choices A and C are both '2'"),
        (changed(options="23"), "column 'options' holds '23'; expected texts"),
        (changed(options=["2", None]), r"column 'options' holds \['2', None\]; expected texts"),
        (changed(right=2), "answer is 2; expected 0 or 1"),
        (changed(right=-1), "answer is -1; expected 0 or 1"),
        (changed(right=True), "answer is True; expected 0 or 1"),
        (changed(right=[0]), r"answer is \[0\]; expected 0 or 1"),
        (changed(right="A"), "answer is 'A'; expected 0 or 1"),
        (changed(text=" \n"), "the question is empty"),
        (changed(text=7), "column 'text' holds 7; expected text"),
        (changed(id="first"), r"id 'first' stands at .*test\.jsonl:1, too"),
        (changed(id=[1]), r"id is \[1\]; expected text"),
        (changed(id=" "), r"id is ' '; expected text"),
        ('{"id": 3, "id": 4}', r"is not valid JSON: the key 'id' twice"),
        ({"id": 3, "options": ["1", "2"]}, r"has no column 'text', which sums.yaml names under 'q"),
        ("{", r"is not valid JSON: "),
        (
            r'{"id": 3, "text": "\ud83d\ude00 \uD800"}',
            r"is not valid JSON: .*surrogates not allowed",
        ),
        ("[1]", r"holds no JSON object; expected one row a line"),
    ],
)
def test_a_bad_row_is_one_line_with_file_and_row(tmp_path, row, message):
    task = own(tmp_path, test=[{**ROW, "id": "first"}, row])
    with pytest.raises(DataError, match=rf"test\.jsonl:2: {message}") as caught:
        load_subjects(tmp_path, task=task)
    assert "\n" not in str(caught.value)


def test_what_only_several_rows_or_files_tell_is_refused(tmp_path):
    three = changed(id="three", options=["2", "3", "4"])
    mixed = OWN.replace("choice_count: [2, 4]\n", "")
    with pytest.raises(
        DataError, match=r"test\.jsonl:2: has 3 choices where .*:1 has 2; where their number varies"
    ):
        load_subjects(tmp_path, task=own(tmp_path, mixed, test=[ROW, three]))
    told = OWN.replace("shots: shots", "shots: '*").replace("*.jsonl", "*.jsonl'")
    with pytest.raises(
        DataError, match=r"test\.jsonl: holds the questions, and data\.shots of sums"
    ):
        load_subjects(tmp_path, task=own(tmp_path, told))
    load_subjects(tmp_path, 0, own(tmp_path, told))  # no shot is taken
    with pytest.raises(DataError, match=r"shots\.jsonl: has 1 rows; expected at least 2 shots"):
        load_subjects(tmp_path, 2, own(tmp_path))
    with pytest.raises(DataError, match=r"test\.jsonl: is empty; expected at least one question"):
        load_subjects(tmp_path, task=own(tmp_path, test=[]))
    with pytest.raises(DataError, match=r"1 shots are asked, and data\.shots names no file"):
        load_subjects(tmp_path, task=own(tmp_path, OWN.replace("  shots: shots.jsonl\n", "")))
    with pytest.raises(DataError, match=r"holds no other\.jsonl; expected one$"):
        load_subjects(tmp_path, task=own(tmp_path, OWN.replace("test.jsonl", "other.jsonl")))


def test_labels_that_stand_twice_or_lack_are_refused(tmp_path):
    text = OWN.replace("answer_is: index", "answer_is: label\nlabels: marks")
    for marks in (["1", "1"], ["1"], ["1", "2", "3"]):
        task = own(tmp_path, text, shots=[changed(marks=["1", "2"], right="1")])
        (tmp_path / "test.jsonl").write_text(json.dumps(changed(marks=marks, right="1")))
        with pytest.raises(DataError, match=r"test\.jsonl:1: 2 choices have the labels 1"):
            load_subjects(tmp_path, task=task)


@pytest.mark.parametrize(("normalise", "length"), [("none", 2), ("chars", 2), ("bytes", 5)])
def test_a_choice_is_as_long_as_the_task_says(normalise, length):
    """Under ``none`` its length is for ``acc_norm`` alone."""
    task = dataclasses.replace(load_task("hellaswag"), normalise=normalise)
    assert task.length("é甲") == length
