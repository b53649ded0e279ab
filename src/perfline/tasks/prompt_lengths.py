"""Which prompts does ``--dummy-weights`` run, when there is no tokenizer to make real ones?

Random token ids in MMLU's real lengths: those of the Llama-3 tokenizer with BOS, recorded per
subject by ``scripts/make_token_lengths.py``. All models take these lengths, so that their
throughputs stand on the same work. A subject's prompts begin with the same tokens, as real ones do,
and a prompt that is too long drops whole shots from the front.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perfline.errors import DataError
from perfline.tasks.prompts import Prompt

_FILE = Path(__file__).parent / "mmlu_token_lengths.json"
_SEED = 20240607


@dataclass(frozen=True)
class SubjectLengths:
    """Tokens of one subject's prompts: the prefix by shots kept, and each question.

    A prompt with ``k`` shots has ``prefix[k] + questions[i]`` tokens; checked to be exact for every
    question when recorded.
    """

    name: str
    prefix: tuple[int, ...]  # index: shots kept, 0 to 5
    questions: tuple[int, ...]

    def shots_kept(self, question: int, max_prompt_tokens: int) -> int:
        """Return how many shots question number ``question`` keeps; DataError where none fit."""
        tokens = self.questions[question]
        for shots in range(len(self.prefix) - 1, -1, -1):
            if self.prefix[shots] + tokens + 1 <= max_prompt_tokens:
                return shots
        raise DataError(
            f"question {self.name}/{question}: {self.prefix[0] + tokens} tokens without any shot; "
            f"expected below {max_prompt_tokens}: raise mmlu.max_prompt_tokens"
        )


def recorded_lengths() -> tuple[SubjectLengths, ...]:
    """Return the recorded lengths of all 57 subjects, sorted by name."""
    subjects = json.loads(_FILE.read_text(encoding="utf-8"))["subjects"]
    return tuple(
        SubjectLengths(
            name, tuple(entry["prefix_tokens_by_shots"]), tuple(entry["question_tokens"])
        )
        for name, entry in sorted(subjects.items())
    )


def dummy_prompts(vocab_size: int, max_prompt_tokens: int, seed: int = _SEED) -> list[Prompt]:
    """Return MMLU's 14,042 prompts with random ids below ``vocab_size``, the same every time.

    ``label`` is None: there is nothing to be right about. About 75 MB.
    """
    prompts = []
    for number, subject in enumerate(recorded_lengths()):
        rng = np.random.default_rng([seed, number])
        head, *shots = (  # instruction; then the last shot, the one before it, ...
            rng.integers(vocab_size, size=size, dtype=np.int64)
            for size in np.diff(subject.prefix, prepend=0)
        )
        prefixes = [
            np.concatenate([head, *reversed(shots[:kept])]) for kept in range(len(shots) + 1)
        ]
        for index, tokens in enumerate(subject.questions):
            kept = subject.shots_kept(index, max_prompt_tokens)
            question = rng.integers(vocab_size, size=tokens, dtype=np.int64)
            prompts.append(
                Prompt(
                    id=f"{subject.name}/{index}",
                    subject=subject.name,
                    ids=np.concatenate([prefixes[kept], question]),
                    shots=kept,
                    label=None,
                )
            )
    return prompts
