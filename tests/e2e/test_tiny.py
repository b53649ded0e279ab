"""The embedded case from end to end: accepted, measured again, then damaged in every known way.

Each run is a pytest of its own, on the real suite; the damage is done to the model's files, or to
perfline's code through a plugin that only that run loads. The case is ``tiny`` in all but its name,
how long it is timed and the spread that it declares, and time is the CPU's: what is slow here is so
slow, and what is not is let vary so much, that no other work on this machine turns a verdict.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fork_server import python
from perfline.cases import data
from perfline.cases.case import PACKAGED_CASES
from perfline.cli.main import main
from tinier import CALM, CPU_SECONDS, SHORT, UNDISTURBED, with_values

REPOSITORY = Path(__file__).parents[2]
TINY = data.PACKAGED_DATA / "tiny_mmlu"
EAGER = ("--engines=eager",)  # nothing is compiled


def run(folder: Path, *arguments: str, plugin: str = "") -> subprocess.CompletedProcess[str]:
    """The suite on the case with baselines and results in ``folder``; ``plugin`` is code."""
    (folder / "damage.py").write_text(CPU_SECONDS + UNDISTURBED + plugin)
    command = [
        *(python(), "-m", "pytest", "-p", "damage", "-p", "no:cacheprovider", "--cases=calm"),
        *(f"--case-dir={folder / 'cases'}", f"--baselines={folder / 'baselines'}"),
        *(f"--results={folder / 'run.json'}", *arguments),
        *(str(REPOSITORY / "tests" / "accuracy"), str(REPOSITORY / "tests" / "perf")),
    ]
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def words(folder: Path) -> dict[str, str]:
    verdicts = json.loads((folder / "run.json").read_text())["cases"]["calm"]["verdicts"]
    return {f"{v['metric']}.{v['gate']}": v["word"] for v in verdicts}


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose baseline is a first run of everything."""
    folder = tmp_path_factory.mktemp("tiny")
    limits = CALM | {"throughput_session_sd_fraction": "0.5"}  # seven times slower is regressed
    short = SHORT | {"sample": "4"}
    tiny = with_values((PACKAGED_CASES / "tiny.yaml").read_text(), **short, **limits)
    (folder / "cases").mkdir()
    (folder / "cases" / "calm.yaml").write_text(
        tiny.replace("case: tiny", "case: calm", 1) + "decode: {tokens: 4}\n"
    )
    published = json.loads((REPOSITORY / "baselines" / "published" / "tiny.json").read_text())
    (folder / "baselines" / "published").mkdir(parents=True)
    (folder / "baselines" / "published" / "calm.json").write_text(
        json.dumps(published | {"case": "calm"})
    )
    done = run(folder, "-m", "perf or accuracy")
    assert done.returncode == 0, done.stdout
    assert words(folder)["acc_infer.published"] == "ok"
    assert words(folder)["acc_infer.baseline"] == "missing"
    assert words(folder)["flips.paired"] == "ok"
    update = ["baselines", "update", "calm", f"--run={folder / 'run.json'}", "--reason=first"]
    where = [f"--case-dir={folder / 'cases'}", f"--baselines={folder / 'baselines'}"]
    assert main([*update, *where]) == 0
    return folder


def test_a_second_run_is_ok(accepted: Path):
    done = run(accepted, "-m", "perf or accuracy")
    assert done.returncode == 0, done.stdout
    found = words(accepted)
    assert {found[f"acc_{e}.{g}"] for e in ("val", "infer") for g in ("published", "baseline")} == {
        "ok"
    }
    assert (found["fidelity.baseline"], found["fidelity_ways.paired"]) == ("ok", "ok")
    assert found["recompiles.baseline"] == found["graph_breaks.baseline"] == "ok"
    speed = {word for name, word in found.items() if name.startswith(("p_", "decode_", "ttft_"))}
    assert speed
    assert speed <= {"ok", "unsure", "improved"}


def scaled(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 3
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def wrong_rope(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    where = config.get("rope_parameters") or config  # transformers 5.x, 4.x
    assert where["rope_theta"] == 10000.0
    where["rope_theta"] = 500000.0
    (model / "config.json").write_text(json.dumps(config))


def wrong_epsilon(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-6
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))


def test_a_damage_that_turns_no_answer_is_regressed_all_the_same(accepted: Path, tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny_mmlu")
    wrong_epsilon(tmp_path / "tiny_mmlu" / "tiny_hf")
    done = run(accepted, f"--data-dir={tmp_path}", *EAGER, "-m", "accuracy")
    assert done.returncode == 1
    found = words(accepted)
    assert (found["acc_val.baseline"], found["fidelity.baseline"]) == ("ok", "regressed")
    assert "the weights changed, too" in " ".join(done.stdout.split())


@pytest.mark.parametrize("damage", [scaled, wrong_rope])
def test_a_damaged_model_is_regressed_and_its_flips_are_named(accepted: Path, tmp_path, damage):
    shutil.copytree(TINY, tmp_path / "tiny_mmlu")
    damage(tmp_path / "tiny_mmlu" / "tiny_hf")
    done = run(accepted, f"--data-dir={tmp_path}", "-m", "accuracy", "-k", "stored and eager")
    assert done.returncode == 1
    assert words(accepted) == {"acc_val.baseline": "regressed"}
    assert "acc_val regressed -" in done.stdout
    assert "right -> wrong" in done.stdout
    assert "weights sha256:" in " ".join(done.stdout.split())  # the context names what changed


DROP_A_SHOT = """
from perfline.tasks import prompts

original = prompts.render_prompt
prompts.render_prompt = lambda subject, question, shots: original(subject, question, shots - 1)
"""


def test_a_dropped_shot_is_regressed(accepted: Path):
    run(accepted, "-m", "accuracy", "-k", "stored and eager", plugin=DROP_A_SHOT)
    assert words(accepted) == {"acc_val.baseline": "regressed"}


OFTEN = """
from perfline.engines.torch_engine import TorchEngine

original = TorchEngine.forward


def often(self, batch, head):
    for _ in range(30):
        original(self, batch, head)
    return original(self, batch, head)


TorchEngine.forward = often
"""


def test_a_forward_that_takes_many_times_as_long_is_regressed(accepted: Path):
    done = run(accepted, "-m", "perf", "-k", "throughput and eager", plugin=OFTEN)
    assert done.returncode == 1, done.stdout
    found = words(accepted)
    assert (found["p_val_core.baseline"], found["p_val_whole.baseline"]) == ("regressed",) * 2


SLOW = """
import functools
import time

from transformers.models.llama.modeling_llama import LlamaModel

original = LlamaModel.forward


@functools.wraps(original)
def slower(self, *args, input_ids, **kwargs):
    end = time.process_time() + {seconds}
    while {when} and time.process_time() < end:
        pass
    return original(self, *args, input_ids=input_ids, **kwargs)


LlamaModel.forward = slower
"""


@pytest.mark.parametrize(
    ("when", "seconds", "slow", "others"),
    [
        ("input_ids.shape[1] == 1", 0.1, {"decode_val"}, {"p_val_core", "ttft_val"}),
        ("input_ids.shape[1] > 1", 0.3, {"p_val_core", "ttft_val"}, {"decode_val"}),
    ],
    ids=["decode", "prefill"],
)
def test_what_is_slow_in_one_workload_is_regressed_there_alone(
    accepted: Path, when, seconds, slow, others
):
    done = run(
        accepted,
        *EAGER,
        "-m",
        "perf and not fingerprint",
        plugin=SLOW.format(when=when, seconds=seconds),
    )
    assert done.returncode == 1, done.stdout
    found = words(accepted)
    assert {found[f"{name}.baseline"] for name in slow} == {"regressed"}
    assert {found[f"{name}.baseline"] for name in others} <= {"ok", "unsure", "improved"}


WRONG_COMPILED = """
from perfline.engines.torch_engine import TorchEngine

original = TorchEngine.forward


def shifted(self, batch, head):
    logits = original(self, batch, head)
    return logits.roll(1, dims=-1) if self.name == "inductor" else logits


TorchEngine.forward = shifted
"""


def test_compiled_code_that_answers_wrongly_is_never_ok(accepted: Path):
    done = run(accepted, "-m", "perf", "-k", "throughput and inductor", plugin=WRONG_COMPILED)
    assert done.returncode == 1
    found = words(accepted)
    assert found["flips.paired"] == "regressed"
    # One test alone counts what it counted among all of them.
    counts = [found[f"{name}.baseline"] for name in ("graphs", "graph_breaks", "recompiles")]
    assert counts == ["ok"] * 3
