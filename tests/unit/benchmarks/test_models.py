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
    found = {"a": {"eager": "right", "eager shared": "no | cache"}, "b": {"all": "refused"}}
    page = models.table(found)
    assert "those that were run: 1 of 2 by eager, 0 of 2 by eager shared, 0 of 1 by ind" in page
    assert "| a | yes | no |  |  | no / cache |" in page
    assert "| b |  |  |  |  | refused |" in page


def test_a_later_run_keeps_what_other_ways_gave():
    found: dict[str, dict[str, str]] = {}
    models.kept(found, "a", {"all": "over 60 s for one way"})
    models.kept(found, "a", {"eager": "right"})
    models.kept(found, "a", {"inductor": "right"})
    assert found == {"a": {"eager": "right", "inductor": "right"}}
    models.kept(found, "a", {"all": "refused"})
    assert found == {"a": {"all": "refused"}}
