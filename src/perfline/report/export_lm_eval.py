"""How do tools for lm-evaluation-harness read the answers? As the files that it writes itself.

``DIR/<model>/results_<date>.json`` and ``DIR/<model>/samples_<task>_<date>.jsonl``, shaped as
lm_eval 0.4.13 does (``result_schema.py``, ``loggers/evaluation_tracker.py``): for every task of the
case one task per subject and one group over all; ``acc`` with the filter ``none`` is the arg-max of
the letters, as there, and ``exact_match`` with the filter ``full-vocab`` is the published scoring.
Of continuations, ``acc`` and ``acc_norm`` are theirs. Texts of questions and prompts, and the
log-probabilities, are not in a record: their keys are left out. The prompt is perfline's, and
``versions`` says so: it is not lm-evaluation-harness's own run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path

from perfline import __version__
from perfline.cases.case import Case, Scoring, WeightsKind
from perfline.engines.engine import EngineName
from perfline.errors import RecordError
from perfline.jsonfile import write_text
from perfline.metrics import answered, pass_name
from perfline.report.exports import Export
from perfline.report.table import engine_kinds
from perfline.tasks.answers import LETTERS, StoredAnswers, question_key
from perfline.tasks.prompt_lengths import recorded_lengths
from perfline.tasks.task import measures, shots, tasks_of

_LETTERS: Mapping[str, Scoring] = {"acc,none": "letters", "exact_match,full-vocab": "full-vocab"}
_MEASURES = {"raw": "acc,none", "norm": "acc_norm,none"}  # of ``task.measures``


@dataclass(frozen=True)
class Task:
    """One subject: the answers to its questions in the order of their index."""

    name: str  # the task's
    subject: str
    indices: tuple[int, ...]
    letters: str
    full_vocab: str  # "-" for no letter
    labels: str
    margins: tuple[float, ...]  # logits, or scores
    split: int | None  # questions of the whole subject, where known
    metrics: Mapping[str, Scoring]  # as lm-evaluation-harness calls them

    def given(self, metric: str) -> str:
        """Return the answers by ``metric``."""
        return self.letters if self.metrics[metric] == "letters" else self.full_vocab

    def hits(self, metric: str) -> list[bool]:
        """Return which questions are right by ``metric``."""
        return [a == label for a, label in zip(self.given(metric), self.labels, strict=True)]


def write(directory: Path, found: Sequence[Export], cases: Mapping[str, Case]) -> list[Path]:
    """Write results and samples of every engine that answered; return the results' paths.

    ``cases`` are the definitions that are at hand, for what a record does not hold. RecordError
    where no engine answered.
    """
    written = []
    for export in found:
        case = cases.get(export.case.case)
        for engine in engine_kinds(export.case).values():
            if "_" in engine:  # an engine's answers to another task than MMLU
                continue
            groups = _groups(export, engine, case)
            if not groups:
                continue
            results = _results(export, engine, groups, case)
            tasks = [task for some in groups.values() for task in some]
            folder = directory / str(results["model_name_sanitized"])
            date = export.created.replace(":", "-")
            for task in tasks:
                lines = "".join(f"{_line(sample)}\n" for sample in _samples(task))
                write_text(folder / f"samples_{task.name}_{date}.jsonl", lines, RecordError)
            written.append(folder / f"results_{date}.json")
            text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
            write_text(written[-1], text + "\n", RecordError)
    if not written:
        raise RecordError(
            "the record holds no answers with letter logits (or they are invalid): run `pytest -m "
            "accuracy` first"
        )
    return written


def _groups(export: Export, engine: EngineName, case: Case | None) -> dict[str, list[Task]]:
    """What an engine answered of each of the case's tasks, by the name of its group."""
    found: dict[str, list[Task]] = {}
    for word, name in _words(export, engine).items():
        answers, metric = export.case.accuracy[word], f"acc_{pass_name(word)}"
        invalid = any(v.metric == metric and v.word == "invalid" for v in export.case.verdicts)
        if invalid or answers.margins is None:  # acc is of the letters' logits
            continue
        tasks = _tasks(export, name, answers, _metrics(export, case, name, metric))
        found[_group(export, name, tasks[0].split is not None)] = tasks
    names = [task.name for some in found.values() for task in some]
    if len(set(names)) != len(names):
        raise RecordError(f"case {export.name}: two subjects have names that differ in signs only")
    return found


def _words(export: Export, engine: EngineName) -> dict[str, str]:
    """{word of the answers (``metrics.answered``): task} of all that an engine gave."""
    before = f"{pass_name(engine)}_"
    named = {
        word: "mmlu" if word == engine else word.removeprefix(before)
        for word in export.case.accuracy
    }
    return {word: name for word, name in named.items() if answered(engine, name) == word}


def _metrics(export: Export, case: Case | None, name: str, metric: str) -> Mapping[str, Scoring]:
    """What the answers to a task are called; RecordError where that takes the case's definition."""
    if f"{metric}_norm" not in export.metrics:
        return _LETTERS
    told = {} if case is None else measures(case, name)
    if not told:
        raise RecordError(
            f"case {export.name}: its YAML says whether answers to {name} are by length, and is "
            "not at hand: name its directory with --case-dir"
        )
    return {_MEASURES[measure]: scoring for measure, scoring in told.items()}


def _tasks(
    export: Export, name: str, answers: StoredAnswers, metrics: Mapping[str, Scoring]
) -> list[Task]:
    """One task per subject; named as lm-evaluation-harness's only where all are MMLU's."""
    sizes = {subject.name: len(subject.questions) for subject in recorded_lengths()}
    keys = [question_key(name) for name in answers.ids]
    real = name == "mmlu" and {subject for subject, _ in keys} <= set(sizes)
    margins = answers.margins or ()
    tasks, start = [], 0
    for subject, group in groupby(keys, key=lambda pair: pair[0]):
        indices = tuple(index for _, index in group)
        part = slice(start, start := start + len(indices))
        tasks.append(
            Task(
                name=_task_name(_group(export, name, real), subject),
                subject=subject,
                indices=indices,
                letters=answers.letters[part],
                full_vocab=answers.argmax[part],
                labels=answers.labels[part],
                margins=margins[part],
                split=sizes[subject] if real else None,
                metrics=metrics,
            )
        )
    return tasks


def _task_name(group: str, subject: str) -> str:
    own = subject == group or subject.startswith(f"{group}_")
    name = subject if own else f"{group}_{subject}"
    return re.sub(r"\W", "_", name)  # it names a file


def _group(export: Export, name: str, real: bool) -> str:
    """Of a case's own questions in MMLU's place: the case's name."""
    return export.name.replace("-", "_") if name == "mmlu" and not real else name


def _results(
    export: Export, engine: EngineName, groups: Mapping[str, Sequence[Task]], case: Case | None
) -> dict[str, object]:
    tasks = {task.name: task for some in groups.values() for task in some}
    # A task that is one subject needs no group over it.
    several = {name: some for name, some in groups.items() if [t.name for t in some] != [name]}
    pooled = {name: _pooled(name, some) for name, some in several.items()}
    of_group = {name: group for group, some in groups.items() for name in (group, *_names(some))}
    context = export.environment.context
    model = f"{export.name}-{engine}"
    shots = _shots(case, export, groups)
    better = {
        name: {metric.partition(",")[0]: True for metric in groups[group][0].metrics}
        for name, group in of_group.items()
    }
    data: dict[str, object | None] = {
        "results": {**pooled, **{name: _scores(task) for name, task in tasks.items()}},
        "groups": pooled,
        "group_subtasks": {name: _names(some) for name, some in several.items()},
        "configs": {
            name: _config(task, of_group[name], shots.get(of_group[name]))
            for name, task in tasks.items()
        },
        "versions": dict.fromkeys(of_group, f"perfline-{__version__}"),
        "n-shot": {n: shots[group] for n, group in of_group.items() if group in shots} or None,
        "higher_is_better": better,
        "n-samples": {name: _sizes(task) for name, task in tasks.items()},
        "config": {
            "model": "perfline",
            "model_args": {
                "case": export.case.case,
                "engine": engine,
                "weights": export.case.weights,
                "digest": export.case.digest,
            },
            "model_dtype": export.case.dtype,
            "device": export.environment.device,
        },
        "git_hash": context.get("commit"),
        "date": datetime.fromisoformat(export.created.replace("Z", "+00:00")).timestamp(),
        "transformers_version": context.get("transformers"),
        "model_source": "perfline",
        "model_name": model,
        "model_name_sanitized": model,
        "total_evaluation_time_seconds": _seconds(export, engine),
    }
    return {name: value for name, value in data.items() if value is not None}


def _names(tasks: Sequence[Task]) -> list[str]:
    return [task.name for task in tasks]


def _shots(case: Case | None, export: Export, groups: Iterable[str]) -> dict[str, int]:
    """Few-shot examples by group, if the case's definition is the one that was measured."""
    kind: WeightsKind = "dummy" if export.case.weights == "dummy" else "real"
    if case is None or case.digest(kind) != export.case.digest:
        return {}
    by_task = {task.name: shots(case, task) for task in tasks_of(case)}
    return {group: by_task.get(group, case.mmlu.few_shots) for group in groups}


def _config(task: Task, group: str, shots: int | None) -> dict[str, object]:
    config: dict[str, object] = {
        "task": task.name,
        "tag": group,
        "dataset_name": task.subject,
        "output_type": "multiple_choice",
        "metadata": {"written_by": f"perfline {__version__}"},
    }
    return config if shots is None else config | {"num_fewshot": shots}


def _sizes(task: Task) -> dict[str, int]:
    known = {} if task.split is None else {"original": task.split}
    return known | {"effective": len(task.indices)}


def _scores(task: Task) -> dict[str, object]:
    scores: dict[str, object] = {
        "name": task.name,
        "alias": task.subject,
        "sample_len": len(task.indices),
    }
    for metric in task.metrics:
        hits = task.hits(metric)
        scores[metric] = sum(hits) / len(hits)
        if len(hits) > 1:  # lm_eval/api/metrics.py: mean_stderr, the sample's deviation
            scores[_stderr(metric)] = _mean_stderr(hits)
    return scores


def _pooled(group: str, tasks: Sequence[Task]) -> dict[str, object]:
    """The micro average and its error, as lm_eval/api/metrics.py: pooled_sample_stderr."""
    sizes = [len(task.indices) for task in tasks]
    metrics = tasks[0].metrics
    scores: dict[str, object] = {
        "name": group,
        "alias": group,
        "sample_len": sum(sizes),
        "sample_count": dict.fromkeys(metrics, sum(sizes)),
    }
    for metric in metrics:
        scores[metric] = sum(sum(task.hits(metric)) for task in tasks) / sum(sizes)
        if min(sizes) > 1:
            squares = sum(
                (n - 1) * _mean_stderr(t.hits(metric)) ** 2 * n
                for n, t in zip(sizes, tasks, strict=True)
            )
            variance = squares / (sum(sizes) - len(sizes))
            scores[_stderr(metric)] = math.sqrt(variance / sum(sizes))
    return scores


def _mean_stderr(hits: Sequence[bool]) -> float:
    n, p = len(hits), sum(hits) / len(hits)
    return math.sqrt(p * (1 - p) / (n - 1))


def _stderr(metric: str) -> str:
    name, _, filtered = metric.partition(",")
    return f"{name}_stderr,{filtered}"


def _seconds(export: Export, engine: EngineName) -> str | None:
    """Of all tasks together; None where that of one is not known."""
    times = [f"acc_{pass_name(word)}_time" for word in _words(export, engine)]
    found = [export.metrics[name].value for name in times if name in export.metrics]
    return str(sum(found)) if len(found) == len(times) else None


def _samples(task: Task) -> Iterator[dict[str, object]]:
    """One row per filter and question, filter by filter, as lm_eval/evaluator.py writes them."""
    for metric, scoring in task.metrics.items():
        name, _, filtered = metric.partition(",")
        given, hits = task.given(metric), task.hits(metric)
        for i, index in enumerate(task.indices):
            sample: dict[str, object] = {
                "doc_id": index,
                "doc": {"id": f"{task.subject}/{index}", "subject": task.subject},
                "target": str(LETTERS.index(task.labels[i])),
                "filtered_resps": [given[i].strip("-")],
                "filter": filtered,
                "metrics": [name],
                name: float(hits[i]),
            }
            if scoring == "letters":
                unit = "logits" if metric in _LETTERS else "score"
                sample[f"margin_{unit}"] = task.margins[i]
            yield sample


def _line(sample: Mapping[str, object]) -> str:
    return json.dumps(sample, ensure_ascii=False, allow_nan=False)
