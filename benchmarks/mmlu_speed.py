"""How much faster does perfline answer MMLU than the published loop and lm-evaluation-harness do?

Runs, in one process, on one random-weight Llama in fp32 and the same prompts (5 shots, two spaces
after "about", nothing stripped, shots dropped above 2048 tokens):

    a      the published loop: one prompt a forward, head at all positions (perfline's plain path)
    b      lm-evaluation-harness' ``hf`` backend on a local task of the same questions, with batch
           sizes 1, 8 and auto, each at its own best: loading tasks and finding the batch size are
           not counted
    c, d   perfline's shared prefixes, eager and compiled by inductor

a and every b run once, with a turn of c and d before the first and after each: a ratio is one
pass' seconds over the mean of the turns on either side of it, so that a machine that gets slower or
faster meanwhile does not decide it. Each is warmed up on two prompts; its seconds hold everything
from the questions' texts to the answers: prompts, tokenisation, planning, forwards. Compilation is
reported apart. The model is wide and shallow, since attention is a small part of a large model's
work: ``attention_fraction`` of the published loop's FLOPs is printed (``layer_flops``). The
tokenizer is a byte-level BPE of 8,000 tokens trained on MMLU, unless ``--tokenizer`` names one. The
default questions are such that sharing saves what it saves on all 14,042: the script stops if
served over computed tokens is not within 10 % of 6.3, both by whole subjects and as planned.

Prints a table and writes ``OUT/mmlu_speed.json``. Needs the ``bench`` dependencies::

    python benchmarks/mmlu_speed.py --mmlu ../shared/data/mmlu --out results/mmlu_speed
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from perfline.engines import environment
from perfline.engines.device import cpu_contention, current_device
from perfline.gates.accuracy import same_answers
from perfline.tasks import prompts

if TYPE_CHECKING:
    from perfline.engines.hf import Model
    from perfline.engines.shared_prefix import SharedPrefixRunner
    from perfline.tasks.answers import Answers
    from perfline.tasks.prompts import Prompt, Subject

ROOT = Path(__file__).parents[1]
QUESTIONS = "high_school_us_history:8,elementary_mathematics:60,moral_scenarios:60"
REUSE, REUSE_TOLERANCE = 6.3, 0.1
LEAST_SPEEDUP, MOST_MEMORY = 6.0, 1.5  # what the project promises
BATCH_SIZES = ("1", "8", "auto")


@dataclass
class Measured:
    """One pass.

    Attributes:
        wall_s, cpu_s: of the pass, without what is named in ``apart``; of several, the median.
        turns: (wall_s, cpu_s) of each, where it ran several times.
        waited_s: seconds that threads were ready but had no core; None where not known.
        before_gib, peak_gib: resident memory at the pass' start, and its peak.
        apart: seconds that are not counted: ``compile_s``, ``batch_size_search_s``.
    """

    name: str
    what: str
    answers: Answers | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    waited_s: float | None = None
    computed_tokens: int = 0
    padded_tokens: int = 0
    before_gib: float | None = None
    peak_gib: float | None = None
    turns: list[tuple[float, float]] = field(default_factory=list)
    apart: dict[str, float] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseRun:
    """What every pass works on."""

    model: Model
    subjects: list[Subject]
    prompts: list[Prompt]  # for warm-ups, and to compare with: each pass builds its own

    def build(self) -> list[Prompt]:
        """The prompts, from the questions' texts."""
        return prompts.build_prompts(self.subjects, self.model.encode, self.model.case.mmlu)


def main() -> int:
    """Build, run every pass, compare."""
    args = _arguments()
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit("lm_eval is not installed: pip install 'perfline[bench]'")
    _offline(args.out)
    bench, about = _prepare(args)
    import lm_eval  # noqa: F401 - its libraries are resident in every pass, not in the later ones

    harness = Harness(bench, args.out / "harness", args.auto_max)
    runs: list[Callable[[], Measured]] = [
        partial(_plain, bench),
        *(partial(harness.run, size) for size in BATCH_SIZES),
    ]
    ours = [Shared(bench, "eager"), Shared(bench, "inductor")]
    peers = []
    for shared in ours:
        shared.turn()
    for run in runs:
        peers.append(run())
        for shared in ours:
            shared.turn()
    report = {**about, **_compare(bench, peers, [shared.all_turns() for shared in ours])}
    (args.out / "mmlu_speed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _show(report)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--mmlu", type=Path, required=True, help="directory with dev/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="folder to build and write in")
    parser.add_argument("--subjects", default=QUESTIONS, help="SUBJECT:FIRST_N, comma-separated")
    parser.add_argument("--questions", type=int, help="at most so many of each subject")
    parser.add_argument("--no-ratio-check", action="store_true", help="accept any token ratio")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("--hidden", type=int, default=1536, help="of the model; a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--auto-max",
        type=int,
        default=16,
        help="max_batch_size of the harness' auto, whose search runs 5 forwards of that many of "
        "the longest prompt (its own default of 64 takes half an hour on 2 cores)",
    )
    return parser.parse_args()


def _offline(out: Path) -> None:
    """Keep Hugging Face's libraries off the network; they read this when they are imported."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HOME=str(out / "hf_home"),
        HF_DATASETS_CACHE=str(out / "hf_datasets"),
        TOKENIZERS_PARALLELISM="true",
    )


def _prepare(args: argparse.Namespace) -> tuple[CaseRun, dict[str, object]]:
    import _speed_model as build

    from perfline.engines import hf
    from perfline.engines.shared_prefix import SharedPrefixRunner

    target = args.out / "model"
    if args.tokenizer is None:
        vocabulary = build.train_tokenizer(args.mmlu, target)
    else:
        vocabulary = build.copy_tokenizer(args.tokenizer, target)
    parameters = build.build(target, build.Size(args.hidden, args.layers), vocabulary)
    model = hf.load(build.write_case(args.out, args.threads), current_device(), target)
    subjects = build.choose(args.mmlu, _counts(args.subjects, args.questions))
    bench = CaseRun(model, subjects, [])
    bench.prompts.extend(bench.build())
    plan = SharedPrefixRunner(model.engine("eager")).plan(bench.prompts)
    asked = {
        "subjects": {subject.name: len(subject.test) for subject in subjects},
        "questions": len(bench.prompts),
        "served_tokens": plan.served_tokens,
        "mean_prompt_tokens": round(plan.served_tokens / len(bench.prompts), 1),
        "truncated_prompts": sum(prompt.shots < 5 for prompt in bench.prompts),
        "reuse_by_subject": round(build.subject_reuse(bench.prompts), 3),
        "reuse_as_planned": round(plan.reuse_factor, 3),
        "attention_fraction": round(_attention_fraction(model.engine("eager"), bench.prompts), 4),
    }
    size = {"parameters": parameters, "hidden": args.hidden, "layers": args.layers}
    print(f"model: {size}, vocabulary {vocabulary}, fp32\nquestions: {asked}", flush=True)
    if not args.no_ratio_check:
        for key in ("reuse_by_subject", "reuse_as_planned"):
            _check_reuse(key, float(str(asked[key])))
    return bench, {**_about(), "model": {**size, "vocabulary": vocabulary}, "asked": asked}


def _attention_fraction(engine: Any, prompts: Sequence[Prompt]) -> float:
    """Share of the published loop's FLOPs that is attention's (``TorchEngine.layer_flops``)."""
    lengths = [len(prompt.ids) for prompt in prompts]
    pair = engine.layer_flops(1, prefix=1) - engine.layer_flops(1)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    return float(pair * pairs / sum(engine.flops(n, "all") for n in lengths))


def _counts(spec: str, most: int | None) -> dict[str, int]:
    counts = {}
    for item in spec.split(","):
        name, _, number = item.partition(":")
        if not number.isdigit() or int(number) < 1:
            raise SystemExit(f"--subjects: '{item}'; expected SUBJECT:FIRST_N")
        counts[name] = min(int(number), most or int(number))
    return counts


def _check_reuse(key: str, ratio: float) -> None:
    low, high = REUSE * (1 - REUSE_TOLERANCE), REUSE * (1 + REUSE_TOLERANCE)
    if not low <= ratio <= high:
        raise SystemExit(
            f"{key} is {ratio:.2f}; expected {low:.2f} to {high:.2f}, as on all of MMLU: choose "
            "other --subjects, or pass --no-ratio-check"
        )


def _about() -> dict[str, object]:
    found = environment.collect(ROOT)
    versions = {name: metadata.version(name) for name in ("lm_eval", "datasets", "accelerate")}
    return {
        "schema": 2,
        "date": environment.today(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": found.machine,
        "device": found.device,
        "dtype": "fp32",
        "context": {**found.context, **versions},
    }


@contextmanager
def _measuring(model: Model, measured: Measured) -> Iterator[None]:
    """Time what is within, and take its peak memory."""
    gc.collect()
    model.device.reset_peak_memory()
    measured.before_gib = model.device.peak_memory_gib()
    before = cpu_contention()
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    measured.wall_s = time.perf_counter() - wall
    measured.cpu_s = time.process_time() - cpu
    after = cpu_contention()
    measured.waited_s = after[1] - before[1] if after and before else None
    measured.peak_gib = model.device.peak_memory_gib()
    print(f"{measured.name}: {measured.wall_s:.1f} s", flush=True)


def _plain(bench: CaseRun) -> Measured:
    from perfline.engines.engine import run_pass

    engine, measured = bench.model.engine("eager"), Measured("a", "published loop")
    run_pass(engine, bench.prompts[:2], "all")
    with _measuring(bench.model, measured):
        done = run_pass(engine, bench.build(), "all")
    measured.answers, measured.computed_tokens = done.answers, done.tokens
    return measured


class Shared:
    """perfline's shared prefixes on one engine, turn by turn."""

    def __init__(self, bench: CaseRun, name: Any) -> None:
        """Compile and warm up."""
        from perfline.engines.shared_prefix import SharedPrefixRunner

        self._bench = bench
        self._runner = runner = SharedPrefixRunner(bench.model.engine(name))
        letter = "d" if name == "inductor" else "c"
        self._first = Measured(letter, f"perfline, shared prefixes, {name}")
        self._turns: list[Measured] = []
        if name == "inductor":
            start = time.perf_counter()
            runner.warm_up(runner.plan(bench.prompts))
            self._first.apart["compile_s"] = time.perf_counter() - start
            self._first.notes["inductor_cache"] = runner.engine.compile_counts().cache
        _run_shared(runner, bench.prompts[:2])
        self._graphs = runner.engine.compile_counts().graphs

    def turn(self) -> None:
        """One pass over all questions."""
        measured = Measured(self._first.name, self._first.what)
        with _measuring(self._bench.model, measured):
            done = _run_shared(self._runner, self._bench.build())
        self._bench.model.activate("eager")  # the harness runs the modules as they are
        measured.answers = done.answers
        measured.computed_tokens, measured.padded_tokens = done.computed_tokens, done.padded_tokens
        self._turns.append(measured)

    def all_turns(self) -> Measured:
        """All of them as one: medians of the seconds, the highest peak."""
        turns = self._turns
        waited = [turn.waited_s for turn in turns if turn.waited_s is not None]
        peaks = [turn.peak_gib for turn in turns if turn.peak_gib is not None]
        recompiles = self._runner.engine.compile_counts().graphs - self._graphs
        return replace(
            turns[-1],
            wall_s=statistics.median(turn.wall_s for turn in turns),
            cpu_s=statistics.median(turn.cpu_s for turn in turns),
            waited_s=max(waited, default=None),
            peak_gib=max(peaks, default=None),
            turns=[(turn.wall_s, turn.cpu_s) for turn in turns],
            apart=self._first.apart,
            notes={**self._first.notes, "recompiles": recompiles},
        )


def _run_shared(runner: SharedPrefixRunner, prompts: Sequence[Prompt]) -> Any:
    return runner.run(prompts, runner.plan(prompts))


class Harness:
    """lm-evaluation-harness on the same model and the same prompts, offline.

    One local task per subject and number of shots kept, so that truncated prompts are the same.
    """

    def __init__(self, bench: CaseRun, folder: Path, auto_max: int) -> None:
        """Write the tasks below ``folder``."""
        from lm_eval.tasks import TaskManager

        self._bench, self._auto_max = bench, auto_max
        self._ids = [prompt.id for prompt in bench.prompts]
        self._texts: dict[str, str] = {}  # prompt by question
        self._tasks = self._write_tasks(folder)
        self._manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run(self, batch_size: str) -> Measured:
        """Evaluate once; checks that what was asked is what perfline asks."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        model = self._bench.model
        lm = HFLM(
            pretrained=model.module,
            tokenizer=model.tokenizer,
            batch_size=batch_size,
            max_batch_size=self._auto_max,
        )
        self._check_tokens(lm)
        settings = {"log_samples": True, "bootstrap_iters": 0}
        search, lm._detect_batch_size = lm._detect_batch_size, lambda *_: 2
        evaluate(lm, task_dict=self._manager.load(self._tasks), limit=1, **settings)
        measured = Measured(f"b {batch_size}", f"lm-evaluation-harness, batch size {batch_size}")
        loaded, counted = self._manager.load(self._tasks), _Counted(lm, search)
        with _measuring(model, measured):
            results = evaluate(lm, task_dict=loaded, **settings)
        measured.wall_s -= counted.search_s
        measured.cpu_s -= counted.search_cpu_s
        measured.computed_tokens = sum(len(prompt.ids) for prompt in self._bench.prompts)
        measured.padded_tokens = counted.tokens - measured.computed_tokens
        if batch_size == "auto":
            measured.apart["batch_size_search_s"] = counted.search_s
            measured.notes["batch_sizes"] = sorted(set(lm.batch_sizes.values()))
        measured.answers = self._answers(results["samples"])
        return measured

    def _write_tasks(self, folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        subjects = {subject.name: subject for subject in self._bench.subjects}
        questions = {q.id: q for subject in subjects.values() for q in subject.test}
        by_shots = sorted(self._bench.prompts, key=lambda p: (p.subject, p.shots))
        names = []
        for (subject_name, shots), group in groupby(by_shots, lambda p: (p.subject, p.shots)):
            subject, name = subjects[subject_name], f"perfline_{subject_name}_{shots}"
            asked = [questions[prompt.id] for prompt in group]
            for question in asked:
                self._texts[question.id] = prompts.render_prompt(subject, question, shots)
            files = {}
            for split, rows in (
                ("test", asked),
                ("dev", subject.dev[len(subject.dev) - shots :] or subject.dev),
            ):
                path = folder / f"{name}_{split}.json"
                path.write_text("".join(json.dumps(_document(q)) + "\n" for q in rows))
                files[split] = str(path.resolve())
            head, blank, _ = prompts.render_prompt(subject, asked[0], 0).partition("\n\n")
            task = _task(name, head + blank, shots, files)
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
            names.append(name)
        return names

    def _check_tokens(self, lm: Any) -> None:
        """The harness' tokens of each prompt's text are perfline's."""
        letters = self._bench.model.letters
        assert letters is not None  # its model has a tokenizer
        for prompt in self._bench.prompts:
            if lm._encode_pair(self._texts[prompt.id], " A") != (prompt.ids.tolist(), [letters[0]]):
                raise SystemExit(f"question {prompt.id}: the harness tokenises it otherwise")

    def _answers(self, samples: dict[str, list[dict[str, Any]]]) -> Answers:
        """Log-probabilities of the four letters, in the prompts' order.

        Logits up to a constant per question, which ``_compare`` takes out.
        """
        rows = {}
        for sample in (sample for task in samples.values() for sample in task):
            name = sample["doc"]["id"]
            if sample["arguments"][0][0] != self._texts[name]:
                raise SystemExit(f"question {name}: the harness' prompt is not perfline's")
            rows[name] = [float(response[0][0]) for response in sample["resps"]]
        from perfline.tasks.answers import Answers

        return Answers(
            ids=tuple(self._ids),
            letter_logits=np.array([rows[name] for name in self._ids], dtype=np.float32),
            argmax=np.full(len(self._ids), -1),
            argmax_letter="-" * len(self._ids),
            labels=None,
            shots=tuple(prompt.shots for prompt in self._bench.prompts),
        )


class _Counted:
    """Counts what an HFLM computes, padding included, without its search for a batch size."""

    def __init__(self, lm: Any, search: Callable[..., int]) -> None:
        self.tokens = 0
        self.search_s = self.search_cpu_s = 0.0
        self._forward, self._search = type(lm)._model_call.__get__(lm), search
        lm._model_call, lm._detect_batch_size = self._count, self._time

    def _count(self, inputs: Any, *rest: Any, **named: Any) -> Any:
        self.tokens += inputs.numel()
        return self._forward(inputs, *rest, **named)

    def _time(self, *rest: Any) -> int:
        wall, cpu = time.perf_counter(), time.process_time()
        found = self._search(*rest)
        self.tokens = 0
        self.search_s += time.perf_counter() - wall
        self.search_cpu_s += time.process_time() - cpu
        return found


def _document(question: prompts.Question) -> dict[str, object]:
    return {
        "id": question.id,
        "question": question.text,
        "choices": list(question.choices),
        "answer": "ABCD".index(question.label),
    }


def _task(name: str, description: str, shots: int, files: dict[str, str]) -> dict[str, object]:
    """The harness' own MMLU task, without its stripping and with both spaces after "about"."""
    choices = "".join(f"\n{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate("ABCD"))
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "dev",
        "num_fewshot": shots,
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "description": description,
        "doc_to_text": "{{question}}" + choices + "\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _compare(bench: CaseRun, peers: Sequence[Measured], ours: Sequence[Measured]) -> dict[str, Any]:
    """Each of ``ours`` against the peers, beside which its turns ran."""
    plain, n = peers[0], len(bench.prompts)
    rows: dict[str, dict[str, Any]] = {}
    for one in (*peers, *ours):
        row = asdict(replace(one, answers=None))
        del row["answers"]
        row["questions_per_s"] = n / one.wall_s
        if one.peak_gib is not None and plain.peak_gib is not None:
            row["peak_ratio"] = one.peak_gib / plain.peak_gib
        rows[one.name] = row | _flips(plain, one)
    promises = {}
    for one in ours:
        row = rows[one.name]
        row["over"] = over = {
            peer.name: {
                "wall": peer.wall_s / statistics.fmean(wall for wall, _ in one.turns[i : i + 2]),
                "cpu": peer.cpu_s / statistics.fmean(cpu for _, cpu in one.turns[i : i + 2]),
            }
            for i, peer in enumerate(peers)
        }
        best = min((name for name in over if name[0] == "b"), key=lambda name: over[name]["wall"])
        row["best_of_harness"] = best
        promises[one.name] = {
            f"{LEAST_SPEEDUP:g}x over a": over["a"]["wall"] >= LEAST_SPEEDUP,
            f"{LEAST_SPEEDUP:g}x over {best}": over[best]["wall"] >= LEAST_SPEEDUP,
            "no flips but ties": row["flips"] == row["ties"],
        }
        if "peak_ratio" in row:
            met = row["peak_ratio"] <= MOST_MEMORY
            promises[one.name][f"memory within {MOST_MEMORY:g}x"] = met
    return {"passes": list(rows.values()), "promises": promises}


def _flips(plain: Measured, one: Measured) -> dict[str, object]:
    """Answers that differ from (a)'s; ``ties`` of them where either answer is as good."""
    assert plain.answers is not None
    assert one.answers is not None
    expected, found = plain.answers, one.answers
    shift = np.zeros((len(found.ids), 1), dtype=np.float32)
    if one.name[0] == "b":  # log-probabilities: equal to logits up to one constant a question
        shift = (expected.letter_logits - found.letter_logits).mean(axis=1, keepdims=True)
    found = replace(found, letter_logits=found.letter_logits + shift)
    flips = sum(x != y for x, y in zip(expected.letters(), found.letters(), strict=True))
    beyond = int(same_answers(expected, found, "fp32").measured or 0)
    largest = float(abs(found.letter_logits - expected.letter_logits).max())
    return {"flips": flips, "ties": flips - beyond, "max_letter_logit_difference": largest}


def _show(report: dict[str, Any]) -> None:
    from tabulate import tabulate

    columns = {
        "what": ("pass", ""),
        "wall_s": ("wall s", ".1f"),
        "cpu_s": ("CPU s", ".1f"),
        "questions_per_s": ("questions/s", ".2f"),
        "computed_tokens": ("computed tok", ",d"),
        "padded_tokens": ("padding tok", ",d"),
        "flips": ("flips", "d"),
        "ties": ("of them ties", "d"),
        "max_letter_logit_difference": ("max Δlogit", ".1e"),
        "peak_gib": ("peak GiB", ".2f"),
        "peak_ratio": ("peak / a", ".2f"),
    }
    heads, items = [head for head, _ in columns.values()], columns.items()
    table = [
        [format(row[key], spec) if row.get(key) is not None else "" for key, (_, spec) in items]
        for row in report["passes"]
    ]
    asked = report["asked"]
    print(f"\n{asked['questions']} questions, {asked['served_tokens']:,} prompt tokens served")
    print(tabulate(table, headers=heads, tablefmt="github", disable_numparse=True))
    for row in report["passes"]:
        if row["apart"] or row["notes"]:
            apart = {key: round(value, 1) for key, value in row["apart"].items()}
            print(f"{row['name']}: not counted {apart}, {row['notes']}")
    for name, met in report["promises"].items():
        row = next(row for row in report["passes"] if row["name"] == name)
        walls = ", ".join(f"{wall:.1f}" for wall, _ in row["turns"])
        print(f"{name}: turns of {walls} s")
        for peer, ratio in row["over"].items():
            print(f"  over {peer}: {ratio['wall']:.2f}x by wall, {ratio['cpu']:.2f}x by CPU")
        print("  " + ", ".join(f"{what}: {'met' if ok else 'MISSED'}" for what, ok in met.items()))


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Keep the docstring's lines."""


if __name__ == "__main__":
    sys.exit(main())
