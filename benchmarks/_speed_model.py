"""Which model, tokenizer and questions does ``mmlu_speed.py`` measure on?

A random-weight Llama of a chosen size, a byte-level BPE trained on the MMLU texts themselves (so
that a prompt has about as many tokens as with Llama-3's tokenizer), and the first questions of a
few subjects.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfline.cases.case import Case, load_case
from perfline.tasks import prompts

if TYPE_CHECKING:
    from perfline.tasks.prompts import Prompt, Subject

VOCABULARY = 8000
_CASE = """case: mmlu-speed
model:
  case_dir: .
  weight_dir: model
  precision: fp32
  bos: tokenizer
  nominal_parameters: 1.0e+8
engine: {{cpu_threads: {threads}}}
"""


@dataclass(frozen=True)
class Size:
    """What the model is made of; heads are 64 wide, a third of them hold keys and values."""

    hidden: int
    layers: int


def write_case(out: Path, threads: int) -> Case:
    """The case of the benchmark; its model lies in ``out / "model"``."""
    path = out / "mmlu-speed.yaml"
    path.write_text(_CASE.format(threads=threads), encoding="utf-8")
    return load_case(path)


def build(target: Path, size: Size, vocabulary: int) -> int:
    """Write a checkpoint, the same one for the same size; returns its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = max(1, size.hidden // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 10 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        max_position_embeddings=4096,
        initializer_range=0.08,  # wide enough that the arg-max is no tie
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(target)
    return sum(parameter.numel() for parameter in model.parameters())


def copy_tokenizer(source: Path, target: Path) -> int:
    """Copy a fast tokenizer's files; returns its vocabulary's size."""
    from transformers import AutoTokenizer

    target.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
    return len(AutoTokenizer.from_pretrained(target, local_files_only=True))


def train_tokenizer(directory: Path, target: Path) -> int:
    """Train a byte-level BPE on all of MMLU's questions; returns its vocabulary's size."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (
        f"{prompts.render_prompt(subject, question, 0)} {question.label}\n\n"
        for subject in prompts.load_subjects(directory, few_shots=5)
        for question in (*subject.dev, *subject.test)
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast_tokenizer: Any = transformers.PreTrainedTokenizerFast  # its __init__ has no types
    fast = fast_tokenizer(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(target)
    return len(fast)


def choose(directory: Path, counts: dict[str, int]) -> list[Subject]:
    """The first questions of each subject named in ``counts``."""
    subjects = {subject.name: subject for subject in prompts.load_subjects(directory, few_shots=5)}
    if unknown := sorted(set(counts) - set(subjects)):
        raise SystemExit(f"{directory}: holds no subject '{unknown[0]}'; see its test/")
    return [first(subjects[name], n) for name, n in counts.items()]


def first(subject: Subject, n: int) -> Subject:
    """The subject with its first ``n`` questions."""
    return replace(subject, test=subject.test[:n])


def subject_reuse(prompts: Sequence[Prompt]) -> float:
    """Served over computed tokens where only a subject's whole common prefix is shared.

    Prompts with fewer shots share among themselves. This is the figure of 6.27 for all of MMLU with
    Llama-3's tokenizer; passages shared below the subject make it 7.33.
    """
    groups = groupby(prompts, key=lambda prompt: (prompt.subject, prompt.shots))
    computed = sum(_computed([prompt.ids for prompt in group]) for _, group in groups)
    return sum(len(prompt.ids) for prompt in prompts) / computed


def _computed(rows: Iterable[Any]) -> int:
    rows = list(rows)
    most = min(map(len, rows)) - 1
    same = (np.stack([row[:most] for row in rows]) == rows[0][:most]).all(axis=0)
    common = most if same.all() else int(same.argmin())
    return common + sum(len(row) - common for row in rows)
