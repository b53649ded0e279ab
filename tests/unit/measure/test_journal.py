from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from perfline.errors import RecordError
from perfline.measure.journal import Journal
from perfline.tasks.answers import Answers

IDENTITY = {"case": "sha256:1", "weights": "sha256:2", "mmlu": "sha256:3", "engine": "eager"}


def batch(*ids, labels="A"):
    n = len(ids)
    return Answers(
        ids=ids,
        letter_logits=np.arange(4 * n, dtype=np.float32).reshape(n, 4) / 3,
        argmax=np.arange(n, dtype=np.int64),
        argmax_letter="B" * n,
        labels=None if labels is None else labels * n,
        shots=(5,) * n,
    )


def journal(tmp_path, **changed):
    return Journal(tmp_path / "j.jsonl", {**IDENTITY, **changed})


def test_answers_come_back_to_the_last_bit(tmp_path):
    first = journal(tmp_path)
    assert first.resume() is None
    first.append(batch("a/0", "a/1"))
    first.append(batch("b/0"))
    again = journal(tmp_path).resume()
    assert again is not None
    assert again.ids == ("a/0", "a/1", "b/0")
    assert (again.letter_logits[:2] == batch("a/0", "a/1").letter_logits).all()
    assert again.letter_logits.dtype == np.float32
    assert (again.labels, again.argmax_letter, again.shots) == ("AAA", "BBB", (5, 5, 5))


def test_no_labels_stay_no_labels(tmp_path):
    file = journal(tmp_path)
    file.resume()
    file.append(batch("a/0", labels=None))
    assert journal(tmp_path).resume().labels is None


def test_a_question_that_stands_twice_ends_what_is_taken_over(tmp_path):
    file = journal(tmp_path)
    file.resume()
    for ids in (("a/0", "a/1"), ("a/2",), ("a/1", "a/3")):
        file.append(batch(*ids))
    assert journal(tmp_path).resume().ids == ("a/0", "a/1", "a/2")


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_dropped_and_the_pass_goes_on_behind_the_whole_ones(tmp_path, cut):
    file = journal(tmp_path)
    file.resume()
    file.append(batch("a/0"))
    file.append(batch("a/1"))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-cut])
    again = journal(tmp_path)
    assert again.resume().ids == ("a/0",)
    again.append(batch("a/1"))
    assert file.path.read_bytes() == whole


@pytest.mark.parametrize("changed", [{"weights": "sha256:x"}, {"mmlu": "y"}, {"engine": "z"}])
def test_a_journal_of_something_else_is_begun_anew(tmp_path, changed):
    file = journal(tmp_path)
    file.resume()
    file.append(batch("a/0"))
    assert journal(tmp_path, **changed).resume() is None
    header = json.loads(file.path.read_bytes().split(b"\n")[0])
    assert header == {"schema": 1, **IDENTITY, **changed}


def test_a_line_that_is_no_answer_ends_what_is_taken_over(tmp_path):
    file = journal(tmp_path)
    file.resume()
    file.append(batch("a/0"))
    with file.path.open("ab") as stream:
        stream.write(b'{"ids": 3}\n')
    file.append(batch("a/1"))
    assert journal(tmp_path).resume().ids == ("a/0",)


def test_a_finished_pass_leaves_no_journal(tmp_path):
    file = journal(tmp_path)
    file.resume()
    file.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_journal_is_one_line(tmp_path):
    (tmp_path / "no").write_text("a file")
    with pytest.raises(RecordError, match=r"no/j\.jsonl: cannot be (read|written)"):
        Journal(tmp_path / "no" / "j.jsonl", IDENTITY).resume()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_one_line():
    full = Journal(Path("/dev/full"), IDENTITY)
    with pytest.raises(RecordError, match=r"^/dev/full: cannot be written: No space left on dev"):
        full.append(batch("a/0"))
