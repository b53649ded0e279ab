"""Where does the embedded case ``tiny`` come from?

From this script alone: it invents an MMLU-shaped question set, builds a byte-level BPE tokenizer
over it and trains a Llama of one million parameters until it answers 5-shot prompts well, but not
perfectly. All draws are seeded; everything runs on the CPU.

Method. There are three sorts of subjects; every word that can be a choice is a single token.

* ``tiny_guests``, ``tiny_pantry``, ``tiny_zoo``: each shot names one word ("I saw a fox.") and a
  test question asks which of its choices was named. The words are redrawn for every training
  prompt, so the answer can only come from the prompt: a prompt that loses a shot loses a fifth of
  the answers.
* ``tiny_arithmetic``, ``tiny_capitals``: multiples of numbers and invented geography, which
  are the same in every prompt and so have to be memorised.
* ``tiny_bridges``: facts that no training text states, so that the answers stay near chance and
  accuracy can rise as well as fall.

Matching a word to the letter in front of it is what a small model learns last. So the attention
heads start out looking somewhere useful (``start_heads``) and training goes from easy to hard
(``STAGES``): the letter of a word, a choice that repeats the line before it, bare statements
followed by questions, two shots, five shots; it goes on when a stage is learned. The loss counts
answers ten times as much as text.

Output. ``OUT/tiny_hf`` is a Hugging Face checkpoint in fp32; ``OUT/mmlu_dataset/data/dev`` and
``.../test`` hold the questions (headerless CSV: question, four choices, answer letter). Together
they stay below 5 MB.

    python scripts/make_tiny.py                             # write and train, about 9 minutes
    python scripts/make_tiny.py --steps 20 --out /tmp/tiny  # a rehearsal: learns nothing
    python scripts/make_tiny.py --check                     # accuracy, whole and damaged

One thread is used: threads that wait for each other are slow where others compete for the cores,
and the sums, and so the weights, do not depend on how many cores there are.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

OUT = Path(__file__).resolve().parents[1] / "src/perfline/cases/embedded/tiny_mmlu"
LETTERS = "ABCD"
SHOTS = 5
TESTS_PER_SUBJECT = 130
VOCAB = 1024
ROPE_THETA = 10000.0
SEED = 20240607
HEADS_SEED = 1  # when the second stage takes off depends on all seeds and token ids

# One token each. "None" is on the shelf like anything else, to catch those who read it from the
# CSV as a missing value.
ANIMALS, GOODS, NAMES = (
    words.split()
    for words in (
        "ant ape bat bear bee boar calf cat clam colt cow crab crow cub deer dog duck elk emu ewe "
        "fly foal fox frog goat gull hare hawk hen ibex jay kid kite lamb lark lion lynx mole moth "
        "mule newt owl ox pig pug ram rat seal",
        "None ale axe bag bell belt bolt book bowl box bulb cake can cap card coat coin comb cork "
        "cup desk dish doll drum file flag fork glue hat hook ink jar jug key kilt lamp lens lock "
        "map mat mop mug nail net oar pan pen pin",
        "Abe Ada Amy Ann Art Ava Bea Ben Bob Cal Dan Dee Don Eli Eve Fay Gil Gus Guy Hal Ian Ida "
        "Ira Ivy Jan Jay Jim Joe Jon Joy Kay Ken Kim Lee Leo Liv Lou Mae Max May Mia Ned Pam Ray "
        "Rob Roy Sam Sue",
    )
)
TOWNS = [
    a + b
    for a in ("Da", "Fe", "Gi", "Ho", "Ju", "Re", "Va", "Zu")
    for b in ("burg", "lo", "mos", "ton")
]
NUMBERS = [str(n) for n in range(2, 51)]


class Question(NamedTuple):
    """One row of a CSV file."""

    text: str
    choices: tuple[str, str, str, str]
    answer: str  # the letter


Rng = random.Random
Draw = Callable[[Rng, list[int], list[int]], tuple[list[Question], list[Question]]]


def ask(rng: Rng, text: str, right: str, wrong: list[str], letter: int) -> Question:
    """`text` with `right` under the given letter and three of `wrong` under the others."""
    choices = rng.sample(wrong, 3)
    choices.insert(letter, right)
    a, b, c, d = choices
    return Question(text, (a, b, c, d), LETTERS[letter])


def balanced(rng: Rng, n: int) -> list[int]:
    """N letter indices, each letter as often as the others (give or take one)."""
    start = rng.randrange(4)
    letters = [(start + i) % 4 for i in range(n)]
    rng.shuffle(letters)
    return letters


def naming(state: str, query: str, pool: list[str]) -> Draw:
    """A subject whose every shot names one word and whose tests ask which word was named."""

    def draw(
        rng: Rng, dev_letters: list[int], test_letters: list[int]
    ) -> tuple[list[Question], list[Question]]:
        words = rng.sample(pool, len(pool))
        n_shots = len(dev_letters)
        named, fresh = words[:n_shots], words[n_shots:]
        vain: list[str] = []  # offered by a shot, but not named
        dev = []
        for word, letter in zip(named, dev_letters, strict=True):
            wrong, fresh = fresh[:3], fresh[3:]
            vain += wrong
            dev.append(ask(rng, f"{state.format(word)} {query}", word, wrong, letter))
        turns = [named[i % n_shots] for i in range(len(test_letters))]  # all shots equally often
        rng.shuffle(turns)
        test = []
        # Wrong choices are new words, as long as the pool lasts; now and then one is not.
        enough = len(fresh) >= 3 * len(turns)
        for i, (word, letter) in enumerate(zip(turns, test_letters, strict=True)):
            wrong = fresh[3 * i : 3 * i + 3] if enough else rng.sample(fresh, 3)
            if rng.random() < 0.3:
                wrong[0] = rng.choice(vain)
            test.append(ask(rng, query, word, wrong, letter))
        return dev, test

    return draw


def independent(one: Callable[[Rng, int], Question]) -> Draw:
    """A subject whose questions do not need one another; `one(rng, letter)` draws one."""

    def draw(
        rng: Rng, dev_letters: list[int], test_letters: list[int]
    ) -> tuple[list[Question], list[Question]]:
        dev = [one(rng, letter) for letter in dev_letters]
        return dev, [one(rng, letter) for letter in test_letters]

    return draw


CAPITALS = Rng(SEED).sample(TOWNS, 12)


def capital(rng: Rng, letter: int) -> Question:
    text = "Which town is a capital?"
    if rng.random() < 0.1:  # a comma and quotes, to be quoted in the CSV
        text = 'Which town, of these, is a "capital"?'
    return ask(rng, text, rng.choice(CAPITALS), [t for t in TOWNS if t not in CAPITALS], letter)


def multiple(rng: Rng, letter: int) -> Question:
    factor = rng.choice((3, 4, 5, 7))
    multiples = [n for n in NUMBERS if int(n) % factor == 0]
    others = [n for n in NUMBERS if int(n) % factor]
    return ask(rng, f"Which is a multiple of {factor}?", rng.choice(multiples), others, letter)


BRIDGES = Rng(SEED + 1).sample(TOWNS, 12)


def bridge(rng: Rng, letter: int) -> Question:
    wrong = [t for t in TOWNS if t not in BRIDGES]
    return ask(rng, "Which town has a bridge?", rng.choice(BRIDGES), wrong, letter)


TAUGHT: dict[str, Draw] = {
    "tiny_arithmetic": independent(multiple),
    "tiny_capitals": independent(capital),
    "tiny_guests": naming("We met {}.", "Who was there?", NAMES),
    "tiny_pantry": naming("The shelf holds {}.", "What is on it?", GOODS),
    "tiny_zoo": naming("I saw a {}.", "Which one was seen?", ANIMALS),
}
SUBJECTS = {**TAUGHT, "tiny_bridges": independent(bridge)}


# --- the question set on disk, and its prompts ------------------------------------------------


def header(subject: str) -> str:
    # MMLU's own formatting leaves two spaces after "about".
    words = "".join(" " + w for w in subject.split("_"))
    return f"The following are multiple choice questions (with answers) about {words}.\n\n"


def render(question: Question) -> str:
    choices = "".join(f"\n{x}. {c}" for x, c in zip(LETTERS, question.choices, strict=True))
    return question.text + choices + "\nAnswer:"


def prompt(subject: str, dev: list[Question], question: Question) -> str:
    shots = "".join(f"{render(q)} {q.answer}\n\n" for q in dev)
    return header(subject) + shots + render(question)


def csv_path(out: Path, split: str, subject: str) -> Path:
    return out / "mmlu_dataset" / "data" / split / f"{subject}_{split}.csv"


def write_questions(out: Path) -> None:
    for i, (subject, draw) in enumerate(SUBJECTS.items()):
        rng = Rng(SEED + i)
        dev, test = draw(rng, balanced(rng, SHOTS), balanced(rng, TESTS_PER_SUBJECT))
        for split, questions in (("dev", dev), ("test", test)):
            path = csv_path(out, split, subject)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as f:
                writer = csv.writer(f, lineterminator="\n")
                writer.writerows([q.text, *q.choices, q.answer] for q in questions)


def read_questions(out: Path, split: str, subject: str) -> list[Question]:
    with csv_path(out, split, subject).open(newline="", encoding="utf-8") as f:
        return [Question(text, (a, b, c, d), x) for text, a, b, c, d, x in csv.reader(f)]


# --- tokenizer and model ----------------------------------------------------------------------


def build_tokenizer() -> Any:
    """Byte-level BPE (any text encodes); every candidate word becomes one token."""
    rng = Rng(SEED)
    corpus = []
    for subject, draw in TAUGHT.items():
        for _ in range(60):
            dev, test = draw(rng, balanced(rng, SHOTS), balanced(rng, 1))
            corpus.append(prompt(subject, dev, test[0]) + f" {test[0].answer}\n\n")
    words = ANIMALS + GOODS + NAMES + TOWNS + NUMBERS
    corpus += [f" {w}" for w in words] * 500
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", model_max_length=4096
    )
    for word in [*words, *LETTERS]:
        ids = core.encode(f" {word}", add_special_tokens=False).ids
        assert len(ids) == 1, f"{word!r} takes {len(ids)} tokens"
    return tokenizer


def build_model(tokenizer: Any) -> Any:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )
    model = LlamaForCausalLM(config)
    start_heads(model)
    return model


@torch.no_grad()
def start_heads(model: Any) -> None:
    """Initial weights whose attention heads already look somewhere useful.

    From random weights, noticing that a choice repeats a word of the question takes thousands
    of steps. So the first two heads start out looking one and two tokens back (the way from a
    choice to its letter), and all the others looking for their own token earlier in the text:
    half of them copy what stands before it (which tells "a fox" from "B. fox"), half the token
    itself. Training is free to change all of it.
    """
    config = model.config
    hidden, dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    planes = torch.arange(dim // 2)  # RoPE turns dimension i with dimension i + dim / 2
    groups = config.num_key_value_heads
    per_group = config.num_attention_heads // groups
    rng = torch.Generator().manual_seed(HEADS_SEED)

    def directions() -> torch.Tensor:
        """`dim` random orthonormal directions of the hidden space, one a row."""
        columns: torch.Tensor = torch.linalg.qr(torch.randn(hidden, dim, generator=rng)).Q
        return columns.T

    # A direction which all embeddings share: by it a head may look at any token.
    shared = torch.nn.functional.normalize(torch.randn(hidden, generator=rng), dim=0)
    embedding = model.model.embed_tokens.weight
    embedding -= torch.outer(embedding @ shared, shared)
    embedding += 0.05 * math.sqrt(hidden) * shared
    token = [directions() for _ in range(groups)]
    written = [directions() for _ in range(config.num_attention_heads)]  # by the first layer
    copied = [written[0], token[1]]
    for depth, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        query, key = attention.q_proj.weight, attention.k_proj.weight
        value, out = attention.v_proj.weight, attention.o_proj.weight
        for g in range(groups):
            rows = slice(g * dim, (g + 1) * dim)
            # Equal queries and keys find equal tokens; slow RoPE planes alone, so at any distance.
            match = 2.0 * directions()
            match -= torch.outer(match @ shared, shared)
            match[torch.cat([planes, planes]) < 6] = 0
            key[rows] = match
            value[rows] = copied[g] if depth else directions()
            for head in range(g * per_group, (g + 1) * per_group):
                columns = slice(head * dim, (head + 1) * dim)
                query[columns] = match
                out[:, columns] = 0.12 * (value[rows] if depth else written[head]).T
    # Looking back: the keys are one constant vector in the five fastest RoPE planes, the queries
    # the same vector turned back by `offset` tokens, so that the score peaks exactly there.
    first = model.model.layers[0].self_attn
    length = 5.0 * (planes < 5)
    turns = ROPE_THETA ** (-planes / len(planes))
    first.k_proj.weight[:dim] = torch.outer(torch.cat([length, 0 * length]), shared) / 8
    for head, offset in enumerate((1, 2)):
        angle = offset * turns
        back = torch.cat([length * angle.cos(), -length * angle.sin()])
        first.q_proj.weight[head * dim : (head + 1) * dim] = torch.outer(back, shared) / 8


# --- training ---------------------------------------------------------------------------------


# A training document: (text, answer) pairs, read one after the other.
Document = list[tuple[str, str]]
# The choices of each subject.
POOLS = dict(zip(TAUGHT, (NUMBERS, TOWNS, NAMES, GOODS, ANIMALS), strict=True))
# Every step reads documents of its stage's kinds in equal parts; the last kind is the hardest.
STAGES = (
    ("letter",),
    ("letter", "find"),
    ("find", "told", "short"),
    ("told", "short", "full", "full"),
    ("full",),
)
LOOK_UPS = ("guests", "pantry", "zoo")
LEARNED = 0.9  # share of right look-ups at which a stage is over
LAST_STAGE_FROM = 0.6  # share of the steps; before it, easier documents keep easier skills alive
REVIEW_STEPS = 25
TOKENS = {"letter": 32, "find": 70, "told": 150, "short": 100, "full": 260}  # of a document
TOKENS_PER_STEP = 2400


def document(rng: Rng, kind: str, subject: str) -> Document:
    """A document of one kind; it asks several questions, for more signal per token."""
    pool = POOLS[subject]

    def letters(n: int) -> list[int]:
        # Drawn one by one: in a balanced list the others would give the last one away.
        return rng.choices(range(4), k=n)

    if kind == "letter":  # four choices, then their words again: " fox B", " owl D"
        words = rng.sample(pool, 4)
        choices = "".join(f"\n{x}. {w}" for x, w in zip(LETTERS, words, strict=True))
        asked = [(f"\n {words[i]}", f" {LETTERS[i]}") for i in letters(4)]
        return [(choices + asked[0][0], asked[0][1]), *asked[1:]]
    before = ""
    if kind == "find":  # the question is the right choice itself
        questions = []
        for letter in letters(3):
            word = rng.choice(pool)
            questions.append(ask(rng, f" {word}", word, [w for w in pool if w != word], letter))
    elif kind == "told":  # all that the shots would say, in bare sentences
        dev, questions = TAUGHT[subject](rng, letters(SHOTS), letters(5))
        before = "".join(q.text.split(". ")[0] + ".\n" for q in dev if ". " in q.text)
    else:
        shots = 2 if kind == "short" else rng.choices((1, 2, 3, 4, 5), (1, 1, 1, 1, 20))[0]
        dev, test = TAUGHT[subject](rng, letters(shots), letters(1 if kind == "short" else 4))
        before, questions = header(subject), dev + test
    texts = [before + render(questions[0]), *("\n\n" + render(q) for q in questions[1:])]
    return [(text, f" {q.answer}") for text, q in zip(texts, questions, strict=True)]


def encode(tokenizer: Any, documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right where a causal model does not look, and a mark on each.

    The mark is 2 for an answer, 1 for other text, 0 for padding.
    """
    ids, marks = [], []
    for pairs in documents:
        row, mark = [tokenizer.bos_token_id], [1]
        for pair in pairs:
            for text, m in zip(pair, (1, 2), strict=True):
                tokens = tokenizer.encode(text, add_special_tokens=False)
                row += tokens
                mark += [m] * len(tokens)
        ids.append(torch.tensor(row))
        marks.append(torch.tensor(mark))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True), pad(marks, batch_first=True)


def letter_ids(tokenizer: Any) -> list[int]:
    return [tokenizer.encode(f" {x}", add_special_tokens=False)[0] for x in LETTERS]


def train(model: Any, tokenizer: Any, steps: int) -> None:
    rng = Rng(SEED)
    # Muon for the matrices inside, AdamW for embeddings and norms: Muon learned the first stage
    # within 75 steps, AdamW alone had not after 220.
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(inner, lr=3e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        """Warm up, stay, and fall linearly over the second half."""
        return min(1.0, (step + 1) / 60, 0.02 + 2 * (steps - step) / steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    began = time.monotonic()
    stage = 0
    tally: dict[str, list[int]] = {}  # right answers and answers, by kind and sort of subject
    for step in range(steps):
        kinds = STAGES[stage]
        model.zero_grad()
        for kind in kinds:
            size = max(1, round(TOKENS_PER_STEP / len(kinds) / TOKENS[kind] / len(TAUGHT)))
            subjects = [s for s in TAUGHT for _ in range(size)]
            ids, marks = encode(tokenizer, [document(rng, kind, s) for s in subjects])
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            target, mark = ids[:, 1:].flatten(), marks[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
            both = loss[mark == 2].mean() + 0.1 * loss[mark == 1].mean()
            torch.autograd.backward(both / len(kinds))
            right = ((logits.argmax(-1) == target) & (mark == 2)).view(len(ids), -1).sum(1)
            asked = (mark == 2).view(len(ids), -1).sum(1)
            for i, subject in enumerate(subjects):
                counts = tally.setdefault(f"{kind} {subject.removeprefix('tiny_')}", [0, 0])
                counts[0] += int(right[i])
                counts[1] += int(asked[i])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if (step + 1) % REVIEW_STEPS == 0 or step + 1 == steps:
            shares = ", ".join(f"{name} {r / n:.2f}" for name, (r, n) in tally.items())
            print(
                f"stage {stage}, step {step + 1}, {time.monotonic() - began:.0f} s: {shares}",
                flush=True,
            )
            stage = next_stage(stage, tally, step / steps)
            tally = {}


def next_stage(stage: int, tally: dict[str, list[int]], progress: float) -> int:
    """The stage to go on with, given right answers and answers since the last review."""
    if stage == len(STAGES) - 1:
        return stage
    look_ups = [tally[f"{STAGES[stage][-1]} {name}"] for name in LOOK_UPS]
    learned = min(right / asked for right, asked in look_ups) > LEARNED
    last = stage + 1 == len(STAGES) - 1
    return stage + 1 if learned and (not last or progress > LAST_STAGE_FROM) else stage


# --- checking what is on disk -----------------------------------------------------------------


def answers(out: Path, model: Any, drop: int | None = None) -> list[tuple[str, bool, bool]]:
    """Per test question: subject, right among the four letters, right in the whole vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(out / "tiny_hf")
    letters = letter_ids(tokenizer)
    found = []
    for subject in SUBJECTS:
        dev = read_questions(out, "dev", subject)
        if drop is not None:
            del dev[drop]
        for question in read_questions(out, "test", subject):
            ids = tokenizer(prompt(subject, dev, question), return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -1]
            right = LETTERS.index(question.answer)
            among_letters = int(logits[letters].argmax()) == right
            found.append((subject, among_letters, int(logits.argmax()) == letters[right]))
    return found


def load(out: Path, *, theta: float = ROPE_THETA, scale: dict[str, float] | None = None) -> Any:
    """The committed model, fp32, with another RoPE base or with some weights scaled."""
    config = AutoConfig.from_pretrained(out / "tiny_hf")
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    model: Any = AutoModelForCausalLM.from_pretrained(
        out / "tiny_hf", config=config, dtype=torch.float32
    )
    for name, factor in (scale or {}).items():
        with torch.no_grad():
            model.get_parameter(f"model.layers.{name}.weight").mul_(factor)
    return model.eval()


def _rerun(out: Path, **damage: Any) -> list[tuple[str, bool, bool]]:
    return answers(out, load(out, **damage))


def check(out: Path) -> None:
    """Print the accuracy of the committed model, whole and under damage."""
    whole = answers(out, load(out))
    n = len(whole)
    for name, rows in [("all", whole), *((s, [r for r in whole if r[0] == s]) for s in SUBJECTS)]:
        k, full = sum(r[1] for r in rows), sum(r[2] for r in rows)
        print(f"{name:16} {k} of {len(rows)} = {k / len(rows):.4f}, full vocabulary {full}")
    tokenizer = AutoTokenizer.from_pretrained(out / "tiny_hf")
    lengths = [
        len(tokenizer(prompt(s, read_questions(out, "dev", s), q)).input_ids)
        for s in SUBJECTS
        for q in read_questions(out, "test", s)
    ]
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    parameters = sum(p.numel() for p in load(out).parameters())
    print(f"{parameters} parameters, {size} bytes, {sum(lengths) / n:.1f} tokens a prompt")
    damages: dict[str, Callable[[], list[tuple[str, bool, bool]]]] = {
        "first shot dropped": lambda: answers(out, load(out), drop=0),
        "last shot dropped": lambda: answers(out, load(out), drop=-1),
    }
    for theta in (40_000.0, 500_000.0):
        damages[f"RoPE base {theta:.0f}"] = partial(_rerun, out, theta=theta)
    for weight, factor in (("0.mlp.down_proj", 3.0), ("0.self_attn.q_proj", 0.25)):
        damages[f"{weight} x {factor}"] = partial(_rerun, out, scale={weight: factor})
    for name, run in damages.items():
        damaged = run()
        pairs = [(w[1], d[1]) for w, d in zip(whole, damaged, strict=True)]
        lost, gained = pairs.count((True, False)), pairs.count((False, True))
        p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        k = sum(d[1] for d in damaged)
        print(f"{name:26} {k / n:.4f}  lost {lost} gained {gained}  McNemar p {p:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1600, help="training steps (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="directory to write or check")
    parser.add_argument("--check", action="store_true", help="evaluate what is there, no training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.check:
        check(args.out)
        return
    write_questions(args.out)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    train(model, tokenizer, args.steps)
    model.save_pretrained(args.out / "tiny_hf")
    tokenizer.save_pretrained(args.out / "tiny_hf")
    name_class(args.out / "tiny_hf" / "tokenizer_config.json")


def name_class(path: Path) -> None:
    """Name the tokenizer's class as transformers 4 knows it too; 5 writes one of its own."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
