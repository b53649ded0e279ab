"""Two ranks on this machine's CPU, started by torchrun as a user starts them, on the real suite.

tests/plugin has all faults.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fork_server import python
from perfline.cases.case import PACKAGED_CASES, load_case
from perfline.engines import hf
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.engines.own_engine import OwnEngines
from perfline.errors import RecordError
from perfline.fields import Node
from perfline.gates import fidelity
from perfline.measure.case_run import CaseRun, OpenCase
from perfline.tasks.prompt_lengths import dummy_prompts
from perfline.tasks.prompts import Continuation
from perfline.tasks.reference import PromptReference
from together import TOGETHER

REPOSITORY = Path(__file__).parents[2]
LAUNCHER = ("-m", "torch.distributed.run", "--standalone")
QUESTIONS = 96


def environment() -> dict[str, str]:
    """PYTHON_EXEC is what torchrun starts ranks with."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python()}


def run(
    folder: Path,
    *arguments: str,
    plugin: str = "",
    launcher: tuple[str, ...] = (),
    case: str = "tiny",
) -> subprocess.CompletedProcess[str]:
    """The answers of ``tiny``; under ``launcher`` where there is one."""
    (folder / "damage.py").write_text(plugin)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [
            *(python(), *launcher, "-m", "pytest", "-m", "accuracy and not fidelity"),
            *("-p", "damage", "-p", "no:cacheprovider", f"--cases={case}", "--verify=2"),
            *(f"--questions={QUESTIONS}", f"--results={folder / 'run.json'}"),
            *(f"--baselines={folder / 'baselines'}", *arguments),
            str(REPOSITORY / "tests" / "accuracy"),
        ],
        cwd=REPOSITORY,
        env={**environment(), "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def measured(folder: Path, case: str = "tiny") -> dict:
    return json.loads((folder / "run.json").read_text())["cases"][case]


def answers(folder: Path, engine: str, case: str = "tiny") -> dict[str, dict[str, str]]:
    """What was answered; without margins, which depend in their last digit on the batches."""
    subjects = measured(folder, case)["accuracy"][engine]["subjects"]
    return {
        subject: {name: column for name, column in columns.items() if name != "margins"}
        for subject, columns in subjects.items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of one process."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(REPOSITORY / "baselines" / "published", folder / "baselines" / "published")
    done = run(folder)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def folder(tmp_path: Path, alone: Path) -> Path:
    shutil.copytree(alone / "baselines", tmp_path / "baselines")
    return tmp_path


def test_two_ranks_answer_as_one_process_does_and_are_timed_together(folder: Path, alone: Path):
    both = ("-m", "accuracy or perf", "-k", "not throughput or eager")
    done = run(
        folder,
        *both,
        str(REPOSITORY / "tests" / "perf"),
        plugin=TOGETHER,
        launcher=(*LAUNCHER, "--nproc-per-node=2"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for engine, kind in (("eager", "val"), ("inductor", "infer")):
        assert answers(folder, engine) == answers(alone, engine)
        notes = measured(folder)["notes"]
        given = [int(n) for n in notes[f"accuracy_questions_by_rank_{kind}"].split(", ")]
        assert notes[f"accuracy_ranks_{kind}"] == 2
        assert sum(given) == QUESTIONS
        assert min(given) > 0
    assert done.stdout.count("test session starts") == 1  # the other rank prints nothing
    assert list((folder / "journals").iterdir()) == []
    metrics, notes = measured(folder)["metrics"], measured(folder)["notes"]
    rates = [float(rate) for rate in notes["tok_per_s_by_rank_val"].split(", ")]
    assert notes["throughput_ranks_val"] == len(rates) == 2
    assert min(*rates, metrics["p_val_whole"]["value"]) > 0  # how much: tests/plugin, by its clock
    assert len(metrics["scaling_efficiency_val"]["samples"]) == 7
    names = ("p_val_core_per_device", "p_val_whole_one_rank", "scaling_efficiency_val")
    assert [metrics[name]["unit"] for name in names] == ["tok/s", "tok/s", "fraction"]
    assert json.loads((folder / "run.json").read_text())["environment"]["layout"] == "x2"


# Another architecture than the embedded model's, with random weights.
QWEN = """
case: qwen
model:
  case_dir: none
  weight_dir: none
  precision: fp32
  nominal_parameters: 1e6
  config: {model_type: qwen3, vocab_size: 512, hidden_size: 64, intermediate_size: 160,
    num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 24,
    tie_word_embeddings: false}
engine: {cpu_threads: 1}
parallel: {tensor: TENSOR}
"""
SPLIT = """
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from perfline.baselines.judge import Against, model_numbers
from perfline.engines import hf
from perfline.cases.case import load_case
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.engines.own_engine import OwnEngines
from perfline.engines.shared_prefix import SharedPrefixRunner
from perfline.fields import as_json
from perfline.measure.case_run import CaseRun, OpenCase
from perfline.measure.rank_worker import follow
from perfline.tasks.prompt_lengths import dummy_prompts
from perfline.tasks.prompts import Continuation
from perfline.distributed.group import join
from perfline.distributed.replica import Replica

def local(parameter):
    return getattr(parameter, "to_local", lambda: parameter)().clone()


here = Path(sys.argv[1])
group = join(100.0)
replica = Replica(group, 2, 1)
case = load_case(here / "qwen.yaml")
if len(sys.argv) > 2:
    case = replace(case, model=replace(case.model, precision=sys.argv[2]))
model = hf.load(case, current_device(), None, replica)
asked = dummy_prompts(model.vocabulary, 2048)[:6]
choices = [Continuation(np.arange(3, 4 + n), 1 + n) for n in range(4)]
# Of the same ids, scored by continuation.
second = [
    replace(prompt, task="second", ids=prompt.ids[-8:], continuations=tuple(choices))
    for prompt in asked
]
opened = OpenCase(model, OwnEngines(case), model.device, None, asked, {"second": second}, {})
case_run = CaseRun(case, opened, model.device)
if group.rank:
    follow(replica, case_run)
elif len(sys.argv) > 2:
    before = {name: local(each) for name, each in model.module.named_parameters()}
    found = case_run.fidelity()
    for name, each in model.module.named_parameters():
        assert (each.dtype, torch.equal(local(each), before[name])) == (torch.bfloat16, True), name
    (here / "fidelity.json").write_text(json.dumps(as_json(found.prompts)))
    run_pass(model.engine("eager"), asked, "last")  # and the others still follow
    words = {v.metric: v.word for v in model_numbers(found, {}, Against(here, None, None))}
    (here / "words.json").write_text(json.dumps(words | {way: way for way in found.ways}))
else:
    found = {}
    for name in ("eager", "inductor"):
        found[name] = run_pass(model.engine(name), asked, "last").answers.letter_logits
    found["second"] = run_pass(model.engine("eager"), second, "last").answers.letter_logits
    runner = SharedPrefixRunner(model.engine("eager"))
    found["shared"] = runner.run(second, runner.plan(second)).answers.letter_logits
    counts = model.engine("inductor").compile_counts()
    found["counts"] = np.array([counts.graphs, counts.graph_breaks])
    np.savez(here / "split.npz", **found)
model.close()
"""


def run_split(folder: Path, *more: str) -> None:
    """Run SPLIT by two ranks."""
    pytest.importorskip("accelerate", reason="transformers splits models with accelerate")
    (folder / "split.py").write_text(SPLIT)
    (folder / "qwen.yaml").write_text(QWEN.replace("TENSOR", "2"))
    done = subprocess.run(
        [python(), *LAUNCHER, "--nproc-per-node=2", "split.py", str(folder), *more],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr


def test_a_split_model_computes_in_fp32_what_an_unsplit_one_does(tmp_path: Path):
    run_split(tmp_path, "bf16")
    words = json.loads((tmp_path / "words.json").read_text())
    ways = {"eager shared", "inductor plain", "inductor shared"}
    assert ways <= words.keys()
    assert [words.pop(way) for way in ways] == list(ways)
    assert words.pop("fidelity") == "missing"
    assert words == dict.fromkeys(("fidelity_ways", "drift_val", "drift_infer"), "ok")
    alone = load_case(tmp_path / "qwen.yaml")
    alone = dataclasses.replace(
        alone,
        parallel=dataclasses.replace(alone.parallel, tensor=1),
        model=dataclasses.replace(alone.model, precision="bf16"),
    )
    model = hf.load(alone, current_device(), None)
    asked = dummy_prompts(model.vocabulary, 2048)[:6]
    opened = OpenCase(model, OwnEngines(alone), model.device, None, asked, {}, {})
    found = CaseRun(alone, opened, model.device).fidelity()
    model.close()
    told = Node("it", json.loads((tmp_path / "fidelity.json").read_text()), RecordError)
    stored = {name: told.child(name).build(PromptReference) for name in told.data}
    numbers = stored, found.prompts, found.logits, 1e-9, found.layers_off, "split"
    verdict = fidelity.against_reference(*numbers)
    assert verdict.word == "ok", verdict.reason


def test_random_weights_of_a_real_architecture_answer_as_unsplit_ones(tmp_path: Path):
    run_split(tmp_path)
    (tmp_path / "qwen.yaml").write_text(QWEN.replace("TENSOR", "1"))
    model = hf.load(load_case(tmp_path / "qwen.yaml"), current_device(), None)
    asked = dummy_prompts(model.vocabulary, 2048)[:6]
    alone = run_pass(model.engine("eager"), asked, "last").answers.letter_logits
    choices = tuple(Continuation(np.arange(3, 4 + n), 1 + n) for n in range(4))
    second = [dataclasses.replace(p, ids=p.ids[-8:], continuations=choices) for p in asked]
    other = run_pass(model.engine("eager"), second, "last").answers.letter_logits
    model.close()
    with np.load(tmp_path / "split.npz") as split:
        for name in ("eager", "inductor"):
            np.testing.assert_allclose(split[name], alone, atol=1e-4)
        for name in ("second", "shared"):
            np.testing.assert_allclose(split[name], other, atol=1e-4)
        assert split["counts"].tolist() == [1, 0]  # one graph, no graph break
    assert min(np.ptp(alone), np.ptp(other[:, 0])) > 0.1


FOLLOWER_KILLED = """
from perfline.engines.shared_prefix import SharedPrefixRunner

follow = SharedPrefixRunner.follow


def killed(self, said, prompts):
    if RANK == "3" and ATTEMPT == "0" and said["do"] == "shared":
        until(lambda: JOURNAL.exists() and len(JOURNAL.read_text().splitlines()) > 1)
        os.kill(os.getpid(), signal.SIGKILL)
    return follow(self, said, prompts)


SharedPrefixRunner.follow = killed
"""


def test_two_replicas_of_two_ranks_answer_as_one_process_even_after_a_kill(
    folder: Path, alone: Path
):
    pytest.importorskip("accelerate", reason="transformers splits models with accelerate")
    text = (PACKAGED_CASES / "tiny.yaml").read_text().replace("case: tiny", "case: split", 1)
    (folder / "split.yaml").write_text(f"{text}\nparallel: {{tensor: 2}}\n")
    plugin = TOGETHER.replace("tiny-eager", "split-eager").replace('RANK == "1"', 'RANK == "2"')
    done = run(
        folder,
        *("--engines=eager", "-m", "accuracy", f"--case-dir={folder}"),
        plugin=plugin + FOLLOWER_KILLED,
        launcher=(*LAUNCHER, "--nproc-per-node=4", "--max-restarts=1"),
        case="split",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert answers(folder, "eager", "split") == answers(alone, "eager")
    notes = measured(folder, "split")["notes"]
    assert notes["accuracy_ranks_val"] == 4
    assert notes["accuracy_resumed_val"] > 0
    given = [int(n) for n in notes["accuracy_questions_by_replica_val"].split(", ")]
    assert (len(given), sum(given)) == (2, QUESTIONS - notes["accuracy_resumed_val"])
    assert json.loads((folder / "run.json").read_text())["partial"] is False
    words = {v["metric"]: v["word"] for v in measured(folder, "split")["verdicts"]}
    assert (words["fidelity_ways"], words["fidelity"]) == ("ok", "missing")
