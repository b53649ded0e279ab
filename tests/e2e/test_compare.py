"""The gate tests itself, with real processes: a slow mutant is found, a wrong one, a broken one.

That the same thing twice is none of these, tests/e2e/test_docs.py sees: the docs compare ``tiny``
with itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from fork_server import python

# Every forward runs five times: the sign of no pair is left to what else the machine does.
MUTANT = """
from perfline.engines.torch_engine import TorchEngine

forward = TorchEngine.forward


def slower(self, batch, head):
    for _ in range(4):
        forward(self, batch, head)
    return forward(self, batch, head)


TorchEngine.forward = slower
"""
# A wrong answer that costs no time: the letters' logits change places. And one norm has another
# epsilon, which no answer shows.
WRONG = """
from perfline.engines.torch_engine import TorchEngine

read = TorchEngine.read


def swapped(self, logits):
    letters, largest, best, text = read(self, logits)
    turned = {"A": "B", "B": "C", "C": "D", "D": "A"}
    return letters[-1:] + letters[:-1], largest, best, turned.get(text.strip(), text)


TorchEngine.read = swapped

from transformers.models.llama import modeling_llama

init = modeling_llama.LlamaDecoderLayer.__init__


def other_epsilon(self, config, layer_idx):
    init(self, config, layer_idx)
    if layer_idx == 2:
        self.input_layernorm.variance_epsilon = 0.1


modeling_llama.LlamaDecoderLayer.__init__ = other_epsilon
"""
# More than anything that a busy machine does to one operator.
AGAIN = """
from transformers.models.llama import modeling_llama

init = modeling_llama.LlamaDecoderLayer.__init__


def often(self, config, layer_idx):
    init(self, config, layer_idx)
    if layer_idx == 2:
        once = self.mlp.forward
        self.mlp.forward = lambda x: [once(x) for _ in range(20)][0]


modeling_llama.LlamaDecoderLayer.__init__ = often
"""


def forked() -> tuple[str, ...]:
    """Sides that need not import torch anew; what starts them is the real ``python``."""
    return ("--baseline-python", python(), "--candidate-python", python())


def compare(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    (folder / "mutant.py").write_text(MUTANT)
    (folder / "wrong.py").write_text(WRONG)
    (folder / "again.py").write_text(AGAIN)
    command = ["-m", "perfline", "compare", "tiny", "--engine", "eager", "--rounds", "3"]
    command += ["--env", f"PYTHONPATH={folder}"]
    for small in ("throughput.sample=1", "throughput.min_round_s=0.02"):
        command += ["--baseline-set", small, "--set", small]
    done = subprocess.run(
        [sys.executable, *command, "--out", "compare.json", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, json.loads((folder / "compare.json").read_text())


def test_five_times_as_slow_is_regressed(tmp_path: Path):
    more = ("--import", "mutant", "--max-pairs", "10", "--questions", "0")
    done, record = compare(tmp_path, *more, *forked())
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("tiny eager regressed +")
    (case,) = record["cases"].values()
    assert len(case["pairs"]) == 10
    assert "imports none -> mutant" in " ".join(done.stdout.split())


def test_as_fast_but_wrong_is_regressed(tmp_path: Path):
    """One launch pair cannot tell the time; its answers are enough, or what is computed in fp32."""
    more = ("--import", "wrong", "--max-pairs", "1", "--questions", "200")
    done, record = compare(tmp_path, *more, *forked())
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("tiny eager regressed: ")
    assert "right -> wrong" in done.stdout
    case = record["cases"]["tiny"]
    found = {verdict["metric"]: verdict for verdict in case["verdicts"]}
    assert (found["fidelity_val"]["word"], found["acc_val"]["word"]) == ("regressed", "regressed")
    assert "hidden states part first in layer 2 of 0 to 3" in found["fidelity_val"]["reason"]
    assert (case["fidelity"]["prompts"], "letter_logprobs" in found) == (16, False)
    assert re.search(r"fidelity_time +s +[0-9.]+ +[0-9.]+", done.stdout)


def test_what_runs_again_in_one_layer_is_named(tmp_path: Path):
    more = ("--import", "again", "--max-pairs", "1", "--questions", "0", *forked())
    done, record = compare(tmp_path, *more, "--explain", "--traces", "traces")
    assert done.returncode == 0, done.stdout + done.stderr  # unsure: one pair tells nothing
    told = record["cases"]["tiny"]["explanation"]
    assert told["problem"] == ""
    assert told["causes"][0]["module"].startswith("layers.2.mlp")
    assert "layers.2.mlp x 20 FLOPs" in told["differences"]
    assert "layers.2.mlp" in done.stdout
    lines = done.stdout.partition("record:")[0].splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    traces = [json.loads((tmp_path / path).read_text()) for path in told["traces"]]
    assert all(trace["traceEvents"] for trace in traces)


def test_a_crash_is_told_and_is_no_time(tmp_path: Path):
    (tmp_path / "broken.py").write_text("import os\nos._exit(3)\n")
    done, record = compare(tmp_path, "--import", "broken", "--max-pairs", "2")
    assert done.returncode == 1
    assert "invalid" in done.stdout
    assert "candidate" in done.stdout
    (case,) = record["cases"].values()
    assert case["pairs"] == []
