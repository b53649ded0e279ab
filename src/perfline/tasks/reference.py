"""What did a model compute in fp32, position by position, in a form that a baseline can keep?

Of some prompts, at some positions each, the log-probabilities of the likeliest tokens and of the
letters, and of all others together (``*``)::

    "anatomy/12": {"prompt": "b1946ac92492d234", "layers": "0.123 -4.56",
                   "at": {"63": "17:-0.0112 4:-4.93 ... *:-7.1", ...}}

Sixteen prompts take about 50 kB. How far two such distributions lie apart is their Kullback-Leibler
divergence, KL(reference || now) = sum p log(p / q) in nats, over those tokens and the rest: never
more than over the whole vocabulary, since merging tokens cannot make it larger (Cover and Thomas,
Elements of Information Theory, 2nd ed., 2.5 and 4.4). Both are divided by their sums, so that
rounding enters squared. The prompt is always the one that is asked, so every position stands on the
same text (teacher forcing).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from perfline.errors import BaselineError
from perfline.fields import OPTIONAL, Scalar
from perfline.tasks.prompts import Prompt

Floats = npt.NDArray[np.floating]
REST = "*"
LIKELIEST = 8  # tokens that are kept at a position, beside the letters
_TOKEN = re.compile(r"0|[1-9][0-9]{0,8}")
_LEAST = -1e4  # log-probabilities of fp32 logits lie above


@dataclass(frozen=True)
class PromptReference:
    """One prompt: what was asked, and what was computed.

    Attributes:
        prompt: digest of its token ids.
        at: by position, the log-probabilities as above.
        layers: one number a decoder layer (``ModelLogits.plain``); empty where not kept.
    """

    prompt: str
    at: Mapping[str, str]
    layers: str = field(default="", metadata=OPTIONAL)

    def __post_init__(self) -> None:
        """Refuse what is no distribution, and a prompt of which nothing is kept."""
        if not self.at:
            raise BaselineError(f"prompt {self.prompt[:20]!r} holds no position")
        for position, told in self.at.items():
            if not _TOKEN.fullmatch(position):
                raise BaselineError(f"position {position[:20]!r} is no whole number")
            distribution(told)
        numbers(self.layers)

    @property
    def largest_token(self) -> int:
        """The largest token that is kept at any position."""
        told = (distribution(text) for text in self.at.values())
        return max(int(token) for each in told for token in each if token != REST)

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions, ascending."""
        return tuple(sorted(map(int, self.at)))


@dataclass(frozen=True)
class Reference:
    """What a session computed in fp32, where it came from, and why it was accepted.

    Attributes:
        prompts: by question id.
    """

    date: str
    commit: str | None
    reason: str
    context: Mapping[str, Scalar]
    prompts: Mapping[str, PromptReference]


def prompt_digest(ids: npt.NDArray[np.int64]) -> str:
    """Return 16 hex digits over a prompt's token ids; (tokens,)."""
    told = ",".join(map(str, ids.tolist()))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def prompt_reference(
    prompt: Prompt,
    positions: Sequence[int],
    logits: Floats,
    letters: Sequence[int],
    layers: Sequence[float] = (),
) -> PromptReference:
    """Return what is kept of logits of shape (positions, vocabulary)."""
    at = {}
    for position, row in zip(positions, log_softmax(logits), strict=True):
        likeliest = np.argpartition(-row, min(LIKELIEST, len(row) - 1))[:LIKELIEST]
        tokens = sorted({*likeliest.tolist(), *letters}, key=lambda token: (-row[token], token))
        told = [(str(token), row[token]) for token in tokens]
        rest = np.delete(row, tokens)
        if len(rest):
            told.append((REST, max(np.logaddexp.reduce(rest), _LEAST)))
        at[str(position)] = " ".join(f"{name}:{max(value, _LEAST):.9g}" for name, value in told)
    shown = " ".join(f"{number:.9g}" for number in layers)
    return PromptReference(prompt_digest(prompt.ids), at, shown)


def distribution(text: str) -> dict[str, float]:
    """Return {token: log-probability} of a stored position; BaselineError where it is none."""
    found = {}
    for item in text.split():
        token, _, value = item.partition(":")
        if not (token == REST or _TOKEN.fullmatch(token)) or token in found:
            raise BaselineError(f"{item[:40]!r} is no token and its log-probability")
        (found[token],) = numbers(value, 1)
        if not _LEAST <= found[token] <= 1e-6:
            raise BaselineError(f"{item[:40]!r} is no log-probability")
    if len(found) < 2 or abs(math.fsum(map(math.exp, found.values())) - 1) > 1e-3:
        raise BaselineError(f"{text[:40]!r} is no distribution: it does not add up to 1")
    return found


def numbers(text: str, count: int | None = None) -> list[float]:
    """Return the numbers of a stored line; BaselineError where one is none."""
    try:
        found = [float(each) for each in text.split()]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)) or (count is not None and len(found) != count):
        raise BaselineError(f"{text[:40]!r} is no number")
    return found


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Return log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def distances(
    stored: Mapping[str, PromptReference],
    now: Mapping[str, PromptReference],
    logits: Mapping[str, Floats],
) -> dict[str, npt.NDArray[np.float64]]:
    """Return :func:`divergences` of the prompts of which both hold the same tokens and positions.

    What is stored of a token that the logits do not have leaves its prompt out, too.
    """
    return {
        name: divergences(told, logits[name])
        for name, told in stored.items()
        if name in now
        and (told.prompt, told.positions) == (now[name].prompt, now[name].positions)
        and told.largest_token < logits[name].shape[-1]
    }


def divergences(stored: PromptReference, logits: Floats) -> npt.NDArray[np.float64]:
    """Return KL(stored || now), nats, at each of the stored positions.

    ``logits`` of now is (positions, vocabulary), in the order of ``stored.positions``, and holds
    every token that is stored.
    """
    found = []
    for position, row in zip(stored.positions, log_softmax(logits), strict=True):
        told = distribution(stored.at[str(position)])
        tokens = [int(token) for token in told if token != REST]
        now = dict(zip(map(str, tokens), row[tokens].tolist(), strict=True))
        rest = np.delete(row, tokens)
        if REST in told:
            now[REST] = float(np.logaddexp.reduce(rest)) if len(rest) else _LEAST
        names = list(told)
        found.append(
            float(kl(np.array([told[n] for n in names]), np.array([now[n] for n in names])))
        )
    return np.array(found)


def kl(reference: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """Return KL(reference || other) in nats over the last axis, of logits or log-probabilities."""
    p, q = log_softmax(reference), log_softmax(other)
    found: npt.NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return found
