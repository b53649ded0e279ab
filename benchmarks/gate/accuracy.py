"""Does the paired accuracy gate see real damage, and does it stay silent where there is none?

The embedded model answers its 780 questions undamaged, damaged in known ways and undamaged by other
means (``_damage.py``). The same answers are judged by perfline's gate, as the suite calls it, and
by unpaired rules: a fixed tolerance, and lm-evaluation-harness' z-test. Then questions are drawn
anew (bootstrap) for rates: of alarms where damage exists, and where the flips of an arm are given a
direction by fair coin, so that nothing got worse.

    python benchmarks/gate/accuracy.py                       # run, judge, print: 2.5 minutes
    python benchmarks/gate/accuracy.py --write               # ... and write JSON and ACCURACY.md
    python benchmarks/gate/accuracy.py --from-answers --write  # judge the stored answers anew

``results/accuracy-tiny.json`` keeps every answer of every arm, so that other rules can be tried on
them without a model. One CPU thread is used, and draws are seeded: figures repeat on one machine
and one torch; elsewhere rounding may flip a few answers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import _accuracy_tables
from _accuracy_rates import DRAWS, SEED, evaluate

from perfline.cases.case import Case, load_cases
from perfline.engines import environment
from perfline.gates.accuracy import accuracy_baseline

HERE = Path(__file__).parent
OUT, PAGE = HERE / "results" / "accuracy-tiny.json", HERE / "ACCURACY.md"
BEGIN, END = "<!-- accuracy.py --write: begin -->", "<!-- accuracy.py --write: end -->"


def record(case: Case) -> dict[str, Any]:
    """Run every arm; its answers as one letter a question, in the order of ``ids``."""
    import _damage
    import torch

    from perfline.baselines.judge import scored
    from perfline.tasks.answers import subset

    torch.set_num_threads(1)
    lab = _damage.Lab(case)
    ids = tuple(prompt.id for prompt in lab.prompts())
    references: dict[str, Any] = {}
    rows, labels = [], ""
    for arm in _damage.arms():
        found = subset(arm.run(lab), ids)
        answers = scored(case, "eager", found)
        if arm.family == "reference":
            references[arm.name] = found, answers
        reference, judged = references[arm.against]
        verdict = accuracy_baseline("acc_val", judged, answers, case.gates)
        difference = float(abs(found.letter_logits - reference.letter_logits).max())
        rows.append(
            {
                "family": arm.family,
                "name": arm.name,
                "against": arm.against,
                "verdict": verdict.word,
                "reason": verdict.reason,
                "max_letter_logit_difference": float(f"{difference:.3g}"),
                "answers": answers.answers,
            }
        )
        labels = answers.labels
        print(f"{arm.name}: {verdict.word}, {verdict.change}", file=sys.stderr, flush=True)
    return {"ids": _subjects(ids), "labels": labels, "arms": rows}


def _subjects(ids: Iterable[str]) -> dict[str, int]:
    """Questions of each subject, in order: their ids are ``subject/0`` and so on."""
    numbers: dict[str, int] = {}
    for name in ids:
        subject, _, index = name.rpartition("/")
        assert int(index) == numbers.get(subject, 0)
        numbers[subject] = int(index) + 1
    return numbers


def main() -> int:
    """Record or read, judge, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--from-answers", action="store_true", help=f"judge those of {OUT.name}")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name} and {PAGE.name}")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of each arm (%(default)s)")
    args = parser.parse_args()
    (case,) = load_cases(["tiny"])
    if args.from_answers:
        document = json.loads(OUT.read_text(encoding="utf-8"))
    else:
        document = {**_about(case), **record(case)}
    document["draws"] = args.draws
    document["results"] = evaluate(document, case.gates, args.draws)
    text = _accuracy_tables.markdown(document)
    print(text)
    if args.write:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(as_json(document), encoding="utf-8")
        write_page(PAGE, text)
    return 0


def as_json(document: Mapping[str, Any]) -> str:
    """One line for every key, and for every row of a list."""

    def shown(value: object, depth: int) -> str:
        if isinstance(value, list) and value:
            return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        if isinstance(value, dict) and value and depth < 2:
            keys = (f"{json.dumps(key)}: {shown(value[key], depth + 1)}" for key in value)
            return "{\n" + ",\n".join(keys) + "\n}"
        return json.dumps(value)

    return shown(document, 0) + "\n"


def write_page(page: Path, text: str) -> None:
    """Replace what stands between the page's markers."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page}: lacks '{BEGIN}' or '{END}' after it; put them back")
    page.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{tail}", encoding="utf-8")


def _about(case: Case) -> dict[str, Any]:
    found = environment.collect(HERE.parents[1])
    return {
        "schema": 1,
        "date": environment.today(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": found.machine,
        "context": found.context,
        "case": case.id,
        "case_digest": case.digest(),
        "seed": SEED,
    }


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Keep the docstring's lines."""


if __name__ == "__main__":
    sys.exit(main())
