"""benchmarks/models.py: a dozen kinds of different build, against their own forward."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import models

BOTH = ("llama", "gemma2", "gemma3_text", "opt", "gpt2", "phi", "mixtral", "deepseek_v3", "cohere2")
PLAIN = {"bloom": "does not run after a prefix", "mamba2": "LinearAttentionLayer"}
PLAIN["qwen3_next"] = PLAIN["mamba2"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*BOTH, "gpt_oss", "llama4_text", *PLAIN])
def test_a_kind_is_right_by_the_plain_path_and_by_shared_prefixes_where_it_has_them(kind):
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {kind}")
    found = dict(models.measure(kind, ["eager"]))
    assert found.pop("eager") == "right"
    shared = found.pop("eager shared")
    if kind in PLAIN:
        assert re.search(PLAIN[kind], shared)
    else:
        assert shared == "right"
    assert not found


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_is_called_wrong(monkeypatch):
    from perfline.engines.torch_engine import TorchEngine

    read_rows = TorchEngine.read_rows
    monkeypatch.setattr(TorchEngine, "read_rows", lambda self, rows: read_rows(self, rows * 1.01))
    assert [said[:15] for said in dict(models.measure("llama", ["eager"])).values()] == [
        "wrong: off by 0"
    ] * 2


def test_the_table_counts_and_gives_reasons():
    found = {"a": {"eager": "right", "eager shared": "no | cache"}, "b": {"all": "over 90 s"}}
    found |= {"c": {"all": "this bert is no decoder-only LM"}, "d": {"all": "no tiny config: x"}}
    page = models.table(found | {"e": {"eager": "wordy " * 99}})
    assert "Right of 3 kinds, of those that were run: 1 of 3 by eager, 0 of 2 by eager sh" in page
    assert "1 kinds of causal LM are refused, as they are no decoder-only LMs, and 1 were " in page
    assert "| a | yes | no |  |  | no / cache |" in page
    assert "| b | no | no | no | no | over 90 s |" in page
    assert "| c | refused | refused | refused | refused | this bert is no decoder-o" in page
    assert "| d | not tried | not tried | not tried | not tried | no tiny config: x |" in page
    assert "wordy wordy ... |" in page


@pytest.mark.filterwarnings("ignore")
def test_what_is_refused_and_what_cannot_be_tried_are_told_apart(monkeypatch):
    ((way, said),) = models.measure("bert", ["eager"])
    assert way == "all"
    assert models.REFUSED in said
    monkeypatch.setitem(models.MORE, "llama", {"num_attention_heads": 7})
    ((way, said),) = models.measure("llama", ["eager"])
    assert way == "all"
    assert said.startswith("no tiny config: ")


def test_a_later_run_keeps_what_other_ways_gave():
    found: dict[str, dict[str, str]] = {}
    models.kept(found, "a", {"all": "over 60 s for one way"})
    models.kept(found, "a", {"eager": "right"})
    models.kept(found, "a", {"inductor": "right"})
    assert found == {"a": {"eager": "right", "inductor": "right"}}
    models.kept(found, "a", {"all": "refused"})
    assert found == {"a": {"all": "refused"}}
