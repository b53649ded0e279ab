"""Do eager and compiled engines give a real-sized model's same answers on real MMLU?

Builds a random-weight Llama of 100 M parameters or more with the embedded tokenizer, writes a case
for it, and runs the ordinary suite over one real subject on this machine's CPU::

    python benchmarks/real_subject.py ../shared/data/mmlu global_facts results/real_subject

The suite's own terminal section is the output; the record stands in the folder named last. Random
weights answer at chance, so the accuracy says nothing; that the engines agree question by question
(metric ``flips``) and what they cost does.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

CASE = """case: llama-100m
title: random-weight Llama, one real subject
model:
  case_dir: llama_100m
  weight_dir: hf
  precision: fp32
  bos: tokenizer
  nominal_parameters: 1.0e+8
throughput: {sample: 8, rounds: 3}
"""


def main() -> int:
    """Build, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("mmlu", type=Path, help="directory with dev/ and test/")
    parser.add_argument("subject", help="one subject, such as global_facts")
    parser.add_argument("out", type=Path, help="folder to build and to write results in")
    parser.add_argument("--questions", type=int, default=100, help="the first N of the subject")
    args = parser.parse_args()
    home = args.out / "data" / "llama_100m"
    parameters = build(home / "hf")
    questions = copy_subject(args.mmlu, args.subject, home / "mmlu_dataset" / "data", args)
    print(f"{parameters / 1e6:.1f} M parameters, {questions} questions of {args.subject}")
    (args.out / "cases").mkdir(parents=True, exist_ok=True)
    (args.out / "cases" / "llama-100m.yaml").write_text(CASE)
    command = [
        *(sys.executable, "-m", "pytest", "-m", "perf or accuracy", "--cases=llama-100m"),
        *(f"--case-dir={args.out / 'cases'}", f"--data-dir={args.out / 'data'}"),
        f"--results={args.out / 'run.json'}",
    ]
    code = subprocess.run(command, check=False).returncode
    report(args.out / "run.json")
    return code


def build(target: Path) -> int:
    """Write the checkpoint, with the embedded tokenizer; the number of its parameters."""
    import _speed_model

    from perfline.cases.data import PACKAGED_DATA

    vocabulary = _speed_model.copy_tokenizer(PACKAGED_DATA / "tiny_mmlu" / "tiny_hf", target)
    return _speed_model.build(target, _speed_model.Size(hidden=768, layers=14), vocabulary)


def copy_subject(mmlu: Path, subject: str, target: Path, args: argparse.Namespace) -> int:
    """Copy one subject's CSVs, the first questions of it; how many."""
    import pandas as pd

    shutil.rmtree(target, ignore_errors=True)
    for split in ("dev", "test"):
        (target / split).mkdir(parents=True)
        name = f"{split}/{subject}_{split}.csv"
        rows = pd.read_csv(mmlu / name, header=None, dtype=str, keep_default_na=False)
        rows = rows.head(args.questions if split == "test" else 5)
        rows.to_csv(target / name, header=False, index=False)
    return len(rows)


def report(run: Path) -> None:
    """Compare the two engines' answers to all questions."""
    from perfline.measure import record

    accuracy = record.load(run).cases["llama-100m"].accuracy
    eager, compiled = accuracy["eager"], accuracy["inductor"]
    flips = sum(a != b for a, b in zip(eager.letters, compiled.letters, strict=True))
    print(f"eager against inductor: {flips} flips in {len(eager.ids)} questions")


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Keep the docstring's lines."""


if __name__ == "__main__":
    sys.exit(main())
