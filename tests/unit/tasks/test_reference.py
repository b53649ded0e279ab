"""What was computed, stored and read back; how far apart two computations are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fakes
from perfline.errors import BaselineError
from perfline.tasks.reference import (
    REST,
    PromptReference,
    distribution,
    divergences,
    kl,
    log_softmax,
    prompt_reference,
)

# More than the 8 likeliest and the 4 letters, so that something is left for all others together.
rows = st.lists(st.floats(-30, 30, width=32), min_size=13, max_size=40).map(
    lambda row: np.array([row], dtype=np.float32)
)
PROMPT = fakes.prompts(1)[0]


def stored(logits, letters=(1, 2, 3, 4)):
    return prompt_reference(PROMPT, list(range(len(logits))), logits, letters)


@given(rows)
def test_what_is_stored_is_a_distribution_with_the_letters_in_it(logits):
    told = distribution(stored(logits).at["0"])
    assert {"1", "2", "3", "4", REST} <= set(told)
    assert math.fsum(map(math.exp, told.values())) == pytest.approx(1, abs=1e-6)
    best = str(int(logits[0].argmax()))
    assert told[best] == pytest.approx(log_softmax(logits)[0].max(), abs=1e-7)


@given(rows)
def test_the_same_numbers_are_no_distance_apart(logits):
    assert divergences(stored(logits), logits)[0] < 1e-12
    assert kl(logits, logits)[0] == 0


@given(rows, st.integers(0, 2**32 - 1), st.floats(1e-3, 3))
def test_merging_tokens_never_makes_the_distance_larger(logits, seed, off):
    other = logits + np.random.default_rng(seed).normal(0, off, logits.shape).astype(np.float32)
    whole = kl(logits, other)[0]
    assert -1e-12 <= divergences(stored(logits), other)[0] <= whole * (1 + 1e-8) + 1e-9


def test_a_distance_by_hand():
    half, quarter = np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl(half, quarter)[0] == pytest.approx(expected)
    assert kl(quarter, half)[0] != pytest.approx(expected)  # it has a direction


def test_an_offset_of_all_logits_is_nothing():
    logits = np.linspace(-3, 3, 20, dtype=np.float32)[None]
    assert kl(logits, logits + 100)[0] < 1e-10


def test_the_largest_token_that_is_kept_tells_the_vocabulary():
    logits = np.zeros((2, 20), dtype=np.float32)
    logits[1, 17] = 5
    assert stored(logits).largest_token == 17


def test_a_prompt_of_which_nothing_is_kept_is_refused():
    with pytest.raises(BaselineError, match="prompt 'abc' holds no position"):
        PromptReference("abc", {})


@pytest.mark.parametrize(
    "told",
    ["", "1:-0.1", "1:0 2:0", "x:-1 *:-0.4", "1:nan *:0", "1:-1e999 *:0", "1:-0.7 1:-0.7", "1 2"],
)
def test_what_is_no_distribution_is_refused(told):
    with pytest.raises(BaselineError, match="is no "):
        PromptReference("ab", {"3": told})


def test_what_is_no_position_is_refused():
    with pytest.raises(BaselineError, match=r"position '-1' is no whole number"):
        PromptReference("ab", {"-1": "1:-0.6931472 *:-0.6931472"})
