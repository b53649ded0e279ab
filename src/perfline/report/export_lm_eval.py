"""How do tools for lm-evaluation-harness read the answers? As the files that it writes itself.

``DIR/<model>/results_<date>.json`` and ``DIR/<model>/samples_<task>_<date>.jsonl``, shaped as
lm_eval 0.4.13 does (``result_schema.py``, ``loggers/evaluation_tracker.py``): one task per subject
and one group over all; ``acc`` with the filter ``none`` is the arg-max of the four letters, as
there, and ``exact_match`` with the filter ``full-vocab`` is the published scoring. Texts of
questions and prompts, and the letters' log-probabilities, are not in a record: their keys are left
out. The prompt is perfline's, and ``versions`` says so: it is not lm-evaluation-harness's own run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path

from perfline import __version__
from perfline.cases.case import Case, WeightsKind
from perfline.engines.engine import EngineName
from perfline.errors import RecordError
from perfline.jsonfile import write_text
from perfline.metrics import pass_name
from perfline.report.exports import Export
from perfline.report.table import engine_kinds
from perfline.tasks.answers import LETTERS, StoredAnswers, question_key
from perfline.tasks.prompt_lengths import recorded_lengths

_ACC, _EXACT = "acc,none", "exact_match,full-vocab"


@dataclass(frozen=True)
class Task:
    """One subject: the answers to its questions in the order of their index."""

    name: str  # the task's
    subject: str
    indices: tuple[int, ...]
    letters: str
    full_vocab: str  # "-" for no letter
    labels: str
    margins: tuple[float, ...]  # logits
    split: int | None  # questions of the whole subject, where known

    def hits(self, metric: str) -> list[bool]:
        """Return which questions are right by ``metric``."""
        given = self.letters if metric == _ACC else self.full_vocab
        return [answer == label for answer, label in zip(given, self.labels, strict=True)]


def write(directory: Path, found: Sequence[Export], cases: Mapping[str, Case]) -> list[Path]:
    """Write results and samples of every engine that answered; return the results' paths.

    ``cases`` are the definitions that are at hand, for what a record does not hold. RecordError
    where no engine answered.
    """
    written = []
    for export in found:
        for engine in engine_kinds(export.case).values():
            answers = _answers(export, engine)
            if answers is None:
                continue
            tasks = _tasks(export, answers)
            results = _results(export, engine, tasks, cases.get(export.case.case))
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


def _answers(export: Export, engine: EngineName) -> StoredAnswers | None:
    metric = f"acc_{pass_name(engine)}"
    invalid = any(v.metric == metric and v.word == "invalid" for v in export.case.verdicts)
    answers = export.case.accuracy.get(engine)
    if invalid or answers is None or answers.margins is None:  # acc is of the letters' logits
        return None
    return answers


def _tasks(export: Export, answers: StoredAnswers) -> list[Task]:
    """One task per subject; named as lm-evaluation-harness's only where all are MMLU's."""
    sizes = {subject.name: len(subject.questions) for subject in recorded_lengths()}
    keys = [question_key(name) for name in answers.ids]
    real = {subject for subject, _ in keys} <= set(sizes)
    margins = answers.margins or ()
    tasks, start = [], 0
    for subject, group in groupby(keys, key=lambda pair: pair[0]):
        indices = tuple(index for _, index in group)
        part = slice(start, start := start + len(indices))
        tasks.append(
            Task(
                name=_task_name(_group(export, real), subject),
                subject=subject,
                indices=indices,
                letters=answers.letters[part],
                full_vocab=answers.argmax[part],
                labels=answers.labels[part],
                margins=margins[part],
                split=sizes[subject] if real else None,
            )
        )
    if len({task.name for task in tasks}) != len(tasks):
        raise RecordError(f"case {export.name}: two subjects have names that differ in signs only")
    return tasks


def _task_name(group: str, subject: str) -> str:
    name = subject if subject.startswith(f"{group}_") else f"{group}_{subject}"
    return re.sub(r"\W", "_", name)  # it names a file


def _group(export: Export, real: bool) -> str:
    return "mmlu" if real else export.name.replace("-", "_")


def _results(
    export: Export, engine: EngineName, tasks: Sequence[Task], case: Case | None
) -> dict[str, object]:
    group = _group(export, tasks[0].split is not None)
    names = [group, *(task.name for task in tasks)]
    context = export.environment.context
    model = f"{export.name}-{engine}"
    shots = _shots(case, export)
    pooled = _pooled(group, tasks)
    better = {"acc": True, "exact_match": True}
    data: dict[str, object | None] = {
        "results": {group: pooled, **{task.name: _scores(task) for task in tasks}},
        "groups": {group: pooled},
        "group_subtasks": {group: [task.name for task in tasks]},
        "configs": {task.name: _config(task, group, shots) for task in tasks},
        "versions": dict.fromkeys(names, f"perfline-{__version__}"),
        "n-shot": None if shots is None else dict.fromkeys(names, shots),
        "higher_is_better": dict.fromkeys(names, better),
        "n-samples": {task.name: _sizes(task) for task in tasks},
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


def _shots(case: Case | None, export: Export) -> int | None:
    """The case's few-shot examples, if its definition is the one that was measured."""
    kind: WeightsKind = "dummy" if export.case.weights == "dummy" else "real"
    if case is None or case.digest(kind) != export.case.digest:
        return None
    return case.mmlu.few_shots


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
    for metric in (_ACC, _EXACT):
        hits = task.hits(metric)
        scores[metric] = sum(hits) / len(hits)
        if len(hits) > 1:  # lm_eval/api/metrics.py: mean_stderr, the sample's deviation
            scores[_stderr(metric)] = _mean_stderr(hits)
    return scores


def _pooled(group: str, tasks: Sequence[Task]) -> dict[str, object]:
    """The micro average and its error, as lm_eval/api/metrics.py: pooled_sample_stderr."""
    sizes = [len(task.indices) for task in tasks]
    scores: dict[str, object] = {
        "name": group,
        "alias": group,
        "sample_len": sum(sizes),
        "sample_count": {_ACC: sum(sizes), _EXACT: sum(sizes)},
    }
    for metric in (_ACC, _EXACT):
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
    metric = export.metrics.get(f"acc_{pass_name(engine)}_time")
    return None if metric is None else str(metric.value)


def _samples(task: Task) -> Iterator[dict[str, object]]:
    """One row per filter and question, filter by filter, as lm_eval/evaluator.py writes them."""
    for metric in (_ACC, _EXACT):
        name, _, filtered = metric.partition(",")
        given = task.letters if metric == _ACC else task.full_vocab
        hits = task.hits(metric)
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
            if metric == _ACC:
                sample["margin_logits"] = task.margins[i]
            yield sample


def _line(sample: Mapping[str, object]) -> str:
    return json.dumps(sample, ensure_ascii=False, allow_nan=False)
