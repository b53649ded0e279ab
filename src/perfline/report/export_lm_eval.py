"""How do tools for lm-evaluation-harness read the answers? As the files that it writes itself.

``DIR/<model>/results_<date>.json`` and ``DIR/<model>/samples_<task>_<date>.jsonl``, shaped as
lm_eval 0.4.13 does (``result_schema.py``, ``loggers/evaluation_tracker.py``): of each of the case's
tasks, one task per subject and one group over all, or one alone where there are no subjects.
``acc`` with the filter ``none`` is the arg-max of the letters, as there, and ``exact_match`` with
the filter ``full-vocab`` is the published scoring; of continuations, ``acc`` and ``acc_norm``.
Texts of questions and prompts, and the letters' log-probabilities, are not in a record: their keys
are left out. The prompt is perfline's, and ``versions`` says so: it is not lm-evaluation-harness's
own run.
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
from perfline.tasks import task as asked
from perfline.tasks.answers import LETTERS, StoredAnswers, question_key
from perfline.tasks.prompt_lengths import recorded_lengths

_ACC, _EXACT, _NORM = "acc,none", "exact_match,full-vocab", "acc_norm,none"
_THEIRS = {"ceval": "ceval-valid", "mmlu_pro": "leaderboard_mmlu_pro"}  # others have one name


@dataclass(frozen=True)
class Task:
    """One subject: the answers to its questions in the order of their index.

    Attributes:
        metrics: what ``letters`` and ``full_vocab`` are scored as.
    """

    name: str  # the task's
    group: str  # what it is one of; its own name where it is alone
    metrics: tuple[str, str]
    subject: str
    indices: tuple[int, ...]
    letters: str
    full_vocab: str  # "-" for no letter; of continuations, the answer by the other measure
    labels: str
    margins: tuple[float, ...]  # logits
    split: int | None  # questions of the whole subject, where known
    shots: int | None  # where the case's definition is at hand

    def hits(self, metric: str) -> list[bool]:
        """Return which questions are right by ``metric``."""
        return [a == label for a, label in zip(self.given(metric), self.labels, strict=True)]

    def given(self, metric: str) -> str:
        """Return the answers that ``metric`` scores."""
        return self.letters if metric == self.metrics[0] else self.full_vocab


def write(directory: Path, found: Sequence[Export], cases: Mapping[str, Case]) -> list[Path]:
    """Write results and samples of every engine that answered; return the results' paths.

    ``cases`` are the definitions that are at hand, for what a record does not hold. RecordError
    where no engine answered.
    """
    written = []
    for export in found:
        case = _measured(cases.get(export.case.case), export)
        for engine in engine_kinds(export.case).values():
            if "_" in engine:  # its answers to another task than MMLU
                continue
            tasks = _tasks(export, engine, case)
            if not tasks:
                continue
            results = _results(export, engine, tasks, case)
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


def _measured(case: Case | None, export: Export) -> Case | None:
    """The case's definition, if it is the one that was measured."""
    kind: WeightsKind = "dummy" if export.case.weights == "dummy" else "real"
    if case is None or case.digest(kind) != export.case.digest:
        return None
    return case.also_asking(export.case.tasks)


def _tasks(export: Export, engine: EngineName, case: Case | None) -> list[Task]:
    """The subjects of all tasks that ``engine`` answered, task by task."""
    known = {name: asked.load_task(name) for name in asked.packaged_tasks()}
    if case is not None:
        known |= {task.name: task for task in asked.tasks_of(case)}
    tasks: list[Task] = []
    for word in sorted(export.case.accuracy, key=lambda word: word != engine):
        kind, _, name = word.partition("_")
        if word != engine and (kind != pass_name(engine) or not name):
            continue
        answers = _answers(export, word)
        if answers is not None:
            name = name or "mmlu"
            task = known.get(name)
            few = None if case is None or task is None else asked.shots(case, task)
            tasks += _subjects(export, name, answers, task, few)
    if len({task.name for task in tasks}) != len(tasks):
        raise RecordError(f"case {export.name}: two subjects have names that differ in signs only")
    return tasks


def _answers(export: Export, word: str) -> StoredAnswers | None:
    metric = f"acc_{pass_name(word)}"
    invalid = any(v.metric == metric and v.word == "invalid" for v in export.case.verdicts)
    answers = export.case.accuracy[word]
    if invalid or answers.margins is None:  # acc is of the letters' logits
        return None
    return answers


def _subjects(
    export: Export,
    name: str,
    answers: StoredAnswers,
    known: asked.Task | None,
    shots: int | None,
) -> list[Task]:
    """One task per subject; MMLU's are named as the harness's only where all are MMLU's."""
    sizes = {subject.name: len(subject.questions) for subject in recorded_lengths()}
    keys = [question_key(each) for each in answers.ids]
    subjects = {subject for subject, _ in keys}
    real = name in ("mmlu", "mmlu_lm_eval") and subjects <= set(sizes)
    group = _THEIRS.get(name, name)
    if name == "mmlu" and not real:
        group = export.name.replace("-", "_")
    metrics = (_ACC, _EXACT)
    if known is not None and known.score == "continuation":
        norm = "acc_bytes,none" if known.normalise == "bytes" else _NORM
        metrics = (_ACC, norm) if known.normalise == "none" else (norm, _ACC)
    tasks, start = [], 0
    for subject, rows in groupby(keys, key=lambda pair: pair[0]):
        indices = tuple(index for _, index in rows)
        part = slice(start, start := start + len(indices))
        tasks.append(
            Task(
                name=group if subjects == {name} else _task_name(group, subject),
                group=group,
                metrics=metrics,
                subject=subject,
                indices=indices,
                letters=answers.letters[part],
                full_vocab=answers.argmax[part],
                labels=answers.labels[part],
                margins=(answers.margins or ())[part],
                split=sizes[subject] if real else None,
                shots=shots,
            )
        )
    return tasks


def _task_name(group: str, subject: str) -> str:
    name = subject if subject.startswith(f"{group}_") else f"{group}_{subject}"
    return re.sub(r"[^\w-]", "_", name)  # it names a file


def _results(
    export: Export, engine: EngineName, tasks: Sequence[Task], case: Case | None
) -> dict[str, object]:
    subtasks = {group: list(some) for group, some in groupby(tasks, key=lambda task: task.group)}
    groups = {name: some for name, some in subtasks.items() if some[0].name != name}
    names = [*groups, *(task.name for task in tasks)]
    context = export.environment.context
    model = f"{export.name}-{engine}"
    few = {group: some[0].shots for group, some in groups.items()}
    few |= {task.name: task.shots for task in tasks}
    known = {name: n for name, n in few.items() if n is not None}
    pooled = {name: _pooled(name, some) for name, some in groups.items()}
    better = {task.name: dict.fromkeys(map(_plain, task.metrics), True) for task in tasks}
    better |= {name: better[some[0].name] for name, some in groups.items()}
    data: dict[str, object | None] = {
        "results": {**pooled, **{task.name: _scores(task) for task in tasks}},
        "groups": pooled,
        "group_subtasks": {
            name: [task.name for task in some if name in groups] for name, some in subtasks.items()
        },
        "configs": {task.name: _config(task) for task in tasks},
        "versions": dict.fromkeys(names, f"perfline-{__version__}"),
        "n-shot": known or None,
        "higher_is_better": better,
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


def _plain(metric: str) -> str:
    """A metric's name without its filter."""
    return metric.partition(",")[0]


def _config(task: Task) -> dict[str, object]:
    config: dict[str, object] = {
        "task": task.name,
        "tag": task.group,
        "dataset_name": task.subject,
        "output_type": "multiple_choice",
        "metadata": {"written_by": f"perfline {__version__}"},
    }
    return config if task.shots is None else config | {"num_fewshot": task.shots}


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
    scores: dict[str, object] = {
        "name": group,
        "alias": group,
        "sample_len": sum(sizes),
        "sample_count": dict.fromkeys(tasks[0].metrics, sum(sizes)),
    }
    for metric in tasks[0].metrics:
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
    for filtered, some in groupby(task.metrics, key=lambda metric: metric.partition(",")[2]):
        metrics = list(some)
        hits = {_plain(metric): task.hits(metric) for metric in metrics}
        given = task.given(metrics[0])
        for i, index in enumerate(task.indices):
            sample: dict[str, object] = {
                "doc_id": index,
                "doc": {"id": f"{task.subject}/{index}", "subject": task.subject},
                "target": str(LETTERS.index(task.labels[i])),
                "filtered_resps": [given[i].strip("-")],
                "filter": filtered,
                "metrics": list(hits),
                **{name: float(right[i]) for name, right in hits.items()},
            }
            if task.metrics[0] in metrics:
                sample["margin_logits"] = task.margins[i]
            yield sample


def _line(sample: Mapping[str, object]) -> str:
    return json.dumps(sample, ensure_ascii=False, allow_nan=False)
