"""The real MMLU: counts, one prompt spelt out, and tokens where the tokenizer is at hand."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from pathlib import Path

import pytest

from perfline.cases.case import MmluSpec
from perfline.engines.prefix_plan import Limits, plan
from perfline.tasks.prompt_lengths import recorded_lengths
from perfline.tasks.prompts import (
    Encode,
    Question,
    Subject,
    build_prompts,
    load_subjects,
    render_prompt,
)

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def directory() -> Path:
    place = os.environ.get("PERFLINE_TEST_MMLU")
    if not place:
        pytest.skip("PERFLINE_TEST_MMLU is not set: the directory with MMLU's dev/ and test/")
    return Path(place)


@pytest.fixture(scope="module")
def subjects(directory: Path) -> tuple[Subject, ...]:
    return load_subjects(directory, few_shots=5)


@pytest.fixture(scope="module")
def llama3() -> Encode:
    """Llama 3's tokenizer, with BOS, from the file that llama-models ships."""
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    script = Path(__file__).parents[3] / "scripts" / "make_token_lengths.py"
    spec = importlib.util.spec_from_file_location("make_token_lengths", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.find_tokenizer_model()
    if model is None:
        pytest.skip("llama-models, which ships Llama 3's tokenizer.model, is not installed")
    encode: Encode = module.llama3_encode(model)
    return encode


def questions(subjects: tuple[Subject, ...]) -> list[Question]:
    return [question for subject in subjects for question in subject.test]


def test_there_are_14_042_questions_in_57_subjects(subjects: tuple[Subject, ...]) -> None:
    assert len(subjects) == 57
    assert len(questions(subjects)) == 14_042
    assert {len(subject.dev) for subject in subjects} == {5}


def test_the_ten_choices_that_say_none_are_text(subjects: tuple[Subject, ...]) -> None:
    found = Counter(q.subject for q in questions(subjects) for c in q.choices if c == "None")
    assert found == {
        "electrical_engineering": 4,
        "college_mathematics": 3,
        "college_computer_science": 2,
        "college_physics": 1,
    }


def test_61_questions_hold_a_blank_line(subjects: tuple[Subject, ...]) -> None:
    asked = sum("\n\n" in question.text for question in questions(subjects))
    shots = sum("\n\n" in shot.text for subject in subjects for shot in subject.dev)
    assert (asked, shots) == (59, 2)


def test_our_reader_agrees_with_pandas(directory: Path, subjects: tuple[Subject, ...]) -> None:
    import pandas as pd

    for subject in subjects:
        for split, ours in (("dev", subject.dev), ("test", subject.test)):
            path = directory / split / f"{subject.name}_{split}.csv"
            table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
            assert [[q.text, *q.choices, q.label] for q in ours] == table.to_numpy().tolist()


def test_one_prompt_bit_for_bit(subjects: tuple[Subject, ...]) -> None:
    (algebra,) = (s for s in subjects if s.name == "abstract_algebra")
    assert render_prompt(algebra, algebra.test[0], shots=2) == (
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
        "Statement 1| Every function from a finite set onto itself must be one to one. "
        "Statement 2 | Every subgroup of an abelian group is abelian.\n"
        "A. True, True\nB. False, False\nC. True, False\nD. False, True\nAnswer: A\n\n"
        "Find the characteristic of the ring 2Z.\n"
        "A. 0\nB. 3\nC. 12\nD. 30\nAnswer: A\n\n"
        "Find the degree for the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) over Q.\n"
        "A. 0\nB. 4\nC. 2\nD. 6\nAnswer:"
    )
    whole = render_prompt(algebra, algebra.test[0], shots=5)
    assert whole.startswith(
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
        "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\n"
        "A. 0\nB. 1\nC. 2\nD. 3\nAnswer: B\n\n"
    )
    assert whole.count("Answer:") == 6


def test_the_recorded_lengths_are_those_of_these_questions(subjects: tuple[Subject, ...]) -> None:
    recorded = {lengths.name: len(lengths.questions) for lengths in recorded_lengths()}
    assert {subject.name: len(subject.test) for subject in subjects} == recorded


def test_the_llama_3_tokenizer_gives_the_recorded_tokens_and_shots(
    subjects: tuple[Subject, ...], llama3: Encode
) -> None:
    recorded = {lengths.name: lengths for lengths in recorded_lengths()}

    prompts = build_prompts(subjects, llama3, MmluSpec())

    assert sum(len(p.ids) for p in prompts) == 9_396_415
    assert sum(p.shots < 5 for p in prompts) == 369
    for prompt in prompts:
        lengths, index = recorded[prompt.subject], int(prompt.id.rpartition("/")[2])
        assert prompt.shots == lengths.shots_kept(index, 2048)
        assert len(prompt.ids) == lengths.prefix[prompt.shots] + lengths.questions[index]


def test_shared_prefixes_come_close_to_what_a_radix_tree_allows(
    subjects: tuple[Subject, ...], llama3: Encode
) -> None:
    """1,313,957 distinct prefixes of tokens: 7.15 times fewer than the 9,396,415 tokens served."""
    prompts = build_prompts(subjects, llama3, MmluSpec())

    frugal = plan(prompts, Limits(forward_cost_tokens=16))
    roomy = plan(prompts, Limits(forward_tokens=8192, forward_cost_tokens=64))

    assert frugal.reuse_factor > 7.0
    assert frugal.padded_tokens < 0.02 * frugal.computed_tokens
    assert roomy.reuse_factor > 6.95
    assert roomy.forwards < 1500
