"""How much faster are tasks scored by continuation than by lm-evaluation-harness' ``hf`` backend?

MMLU's questions, asked as ARC's are (``Question: ... Answer:``, each choice in its own words), on
``mmlu_speed.py``'s random-weight Llama in fp32 on this machine's CPU: without shots, as ARC and
HellaSwag are asked by default, and with five. One process; a turn of ours (shared prefixes, eager)
before and after each turn of theirs (``loglikelihood`` with batch sizes 1 and 8): a ratio is their
seconds over the mean of ours on either side. Both begin with texts. The script stops where a sum of
log-probabilities differs, or an answer.

Prints a table and writes ``OUT/continuation_speed.json``. Needs the ``bench`` dependencies::

    python benchmarks/continuation_speed.py --mmlu ../shared/data/mmlu --out results/continuation
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _speed_model as build
import numpy as np
from tabulate import tabulate

from perfline.engines import environment
from perfline.engines.device import current_device
from perfline.tasks import prompts
from perfline.tasks.task import read_task

ROOT = Path(__file__).parents[1]
QUESTIONS = "elementary_mathematics:40,high_school_us_history:10,moral_scenarios:40"
BATCH_SIZES = (1, 8)
_TASK = """name: words
version: 1
source: MMLU's questions in ARC's words
data:
  path: .
  columns: [question, A, B, C, D, answer]
  test: test/{subject}_test.csv
  shots: dev/{subject}_dev.csv
choices: [A, B, C, D]
answer: answer
lenient: true
prompt: "Question: {question}\\nAnswer:"
score: continuation
"""


def main() -> int:
    """Time both in turn, for each number of shots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mmlu", type=Path, required=True, help="directory with dev/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="folder to build and write in")
    parser.add_argument("--subjects", default=QUESTIONS, help="SUBJECT:FIRST_N, comma-separated")
    parser.add_argument("--hidden", type=int, default=768, help="of the model; a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    from lm_eval.models.huggingface import HFLM

    from perfline.engines import hf
    from perfline.engines.shared_prefix import SharedPrefixRunner

    vocabulary = build.train_tokenizer(args.mmlu, args.out / "model")
    parameters = build.build(args.out / "model", build.Size(args.hidden, args.layers), vocabulary)
    case = build.write_case(args.out, len(os.sched_getaffinity(0)))
    model = hf.load(case, current_device(), args.out / "model")
    (args.out / "words.yaml").write_text(_TASK, encoding="utf-8")
    task = read_task(args.out / "words.yaml")
    counts = {name: int(n) for name, _, n in (s.partition(":") for s in args.subjects.split(","))}
    runner = SharedPrefixRunner(model.engine("eager"))
    rows = []
    for shots in (0, 5):
        found = {subject.name: subject for subject in prompts.load_subjects(args.mmlu, shots, task)}
        subjects = [build.first(found[name], n) for name, n in counts.items()]

        def ours(subjects: Any = subjects) -> list[list[float]]:
            asked = prompts.build_prompts(subjects, model.encode, case.mmlu)
            done = runner.run(asked, runner.plan(asked)).answers
            return [row[:4].tolist() for row in done.letter_logits]

        asked = prompts.build_prompts(subjects, model.encode, case.mmlu)
        kept = {prompt.id: prompt.shots for prompt in asked}  # long ones drop some
        pairs = [
            (prompts.render_prompt(subject, question, kept[question.id]), f" {choice}")
            for subject in subjects
            for question in subject.test
            for choice in question.choices
        ]
        plan, sums = runner.plan(asked), ours()
        for size in BATCH_SIZES:
            lm = HFLM(model.module, tokenizer=model.tokenizer, batch_size=size, add_bos_token=False)

            def theirs(lm: Any = lm, pairs: Any = pairs) -> list[list[float]]:
                return _theirs(lm, pairs)

            theirs(pairs=pairs[:8])
            before, own, after = (_timed(run) for run in (ours, theirs, ours))
            np.testing.assert_allclose(own[1], sums, rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(*(np.argmax(each, axis=1) for each in (own[1], sums)))
            rows.append(
                {
                    "shots": shots,
                    "batch_size": size,
                    "questions": len(asked),
                    "served_tokens": plan.served_tokens,
                    "reuse": round(plan.reuse_factor, 2),
                    "ours_s": [before[0], after[0]],
                    "theirs_s": own[0],
                    "ratio": own[0] / ((before[0] + after[0]) / 2),
                    "load_average": os.getloadavg()[0],
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "date": environment.today(),
        "context": environment.collect(ROOT).context,
        "parameters": parameters,
        "rows": rows,
    }
    (args.out / "continuation_speed.json").write_text(json.dumps(about, indent=1) + "\n")
    keys = ("shots", "batch_size", "questions", "reuse", "theirs_s", "ratio")
    print(tabulate([[row[key] for key in keys] for row in rows], keys, floatfmt=".2f"))
    return 0


def _timed(run: Callable[[], list[list[float]]]) -> tuple[float, list[list[float]]]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def _theirs(lm: Any, pairs: list[tuple[str, str]]) -> list[list[float]]:
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    sums = [total for total, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    return [sums[at : at + 4] for at in range(0, len(sums), 4)]


if __name__ == "__main__":
    raise SystemExit(main())
