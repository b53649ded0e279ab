"""Which names may code outside of perfline rest on, and what do they cost?"""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import perfline
from perfline import errors

REPOSITORY = Path(__file__).parents[2]
NAMES = {
    *("Answers", "Baseline", "Case", "Engine", "Metric", "Prompt", "Question", "Record", "Verdict"),
    *("load_baseline", "load_case", "load_record", "__version__"),
}
ERRORS = {name for name, found in vars(errors).items() if inspect.isclass(found)}


def test_the_names_are_these():
    """A name more is a promise more, and a name less breaks somebody's code: CHANGELOG."""
    assert set(perfline.__all__) == NAMES | ERRORS
    assert dir(perfline) == sorted(perfline.__all__)
    assert len(perfline.__all__) == len(set(perfline.__all__))


@pytest.mark.parametrize("name", sorted(NAMES | ERRORS))
def test_a_name_is_there_and_says_what_it_is(name: str):
    found = getattr(perfline, name)
    assert found.__doc__


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'perfline' has no attribute 'Engin'"):
        _ = perfline.Engin


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_may_be_copied_and_sent_to_another_process(name: str):
    kind = getattr(perfline, name)
    error = kind("no weights", "hf download x") if name == "MissingData" else kind("no weights")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_a_file_may_be_named_by_text(tmp_path: Path):
    tiny = Path(perfline.__file__).parent / "cases" / "tiny.yaml"
    assert perfline.load_case(str(tiny)) == perfline.load_case(tiny)
    for load, error in (
        (perfline.load_case, errors.CaseError),
        (perfline.load_record, errors.RecordError),
        (perfline.load_baseline, errors.BaselineError),
    ):
        for place in (tmp_path, tmp_path / "nothing"):
            with pytest.raises(error, match=f"^{re.escape(str(place))}: "):
                load(str(place))


@pytest.mark.parametrize("name", ["load_case", "load_record", "load_baseline"])
def test_a_fifo_is_refused_at_once(tmp_path: Path, name: str):
    fifo = tmp_path / "x.json"
    os.mkfifo(fifo)
    with pytest.raises(errors.PerflineError, match=r"x\.json: is no regular file; "):
        getattr(perfline, name)(fifo)


def test_no_name_imports_what_is_slow():
    code = (
        "import sys, perfline\n"
        "before = sorted(name for name in sys.modules if name.startswith('perfline.'))\n"
        "for name in perfline.__all__: getattr(perfline, name)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'scipy'} & set(sys.modules)\n"
        "print(before, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_the_types_are_shipped():
    assert (Path(perfline.__file__).parent / "py.typed").is_file()


def test_the_page_is_made_from_the_code():
    page = runpy.run_path(str(REPOSITORY / "scripts" / "api.py"))["page"]()
    assert (REPOSITORY / "docs" / "api.md").read_text() == page, (
        "python scripts/api.py >docs/api.md"
    )
