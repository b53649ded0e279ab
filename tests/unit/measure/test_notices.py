"""What other packages say is counted, outside of timed rounds, whatever the filters say."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from perfline.engines.environment import beyond_tested
from perfline.measure.notices import LONGEST, MOST, Notice, Notices, timed


def warn_as(package: str, text: str, category: type[Warning], stacklevel: int = 1) -> None:
    """Warn from a module of ``package``, as its own code or its caller's."""
    code = "import warnings\ndef deprecated(*given, **more): warnings.warn(*given, **more)\n"
    module = {"__name__": f"{package}.inner", "__builtins__": __builtins__}
    exec(compile(code, f"/site-packages/{package}/inner.py", "exec"), module)
    module["deprecated"](text, category, stacklevel=stacklevel)


def test_warnings_that_are_errors_become_notices_with_their_counts():
    notices = Notices()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with notices.listening():
            for _ in range(3):
                warn_as("transformers", "`x` is\n deprecated", FutureWarning, stacklevel=2)
        with pytest.raises(FutureWarning):
            warn_as("transformers", "again", FutureWarning)
    assert notices.all == (Notice("transformers", "`x` is deprecated", 3),)
    assert notices.all[0].line == (
        "transformers: `x` is deprecated (seen 3 times before the timed rounds)"
    )


def test_what_is_logged_as_a_warning_counts_too_and_nothing_else():
    notices, logger = Notices(), logging.getLogger("transformers.some.module")
    logger.warning("before")
    with notices.listening(), notices.listening():
        logger.warning("%s is deprecated", "past_key_values")
        logger.info("loading")
    logger.warning("after")
    assert notices.all == (Notice("transformers", "past_key_values is deprecated"),)


def test_a_library_s_logger_that_keeps_its_lines_to_itself_counts_too():
    notices, logger = Notices(), logging.getLogger("torch._perfline_test.utils")
    logger.propagate = False
    with notices.listening():
        logger.warning("not enough SMs")
    assert notices.all == (Notice("torch", "not enough SMs"),)
    assert logger.handlers == []


def test_nothing_is_counted_in_timed_rounds_and_nothing_raised():
    notices, logger = Notices(), logging.getLogger("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with notices.listening(), timed():
            warn_as("torch", "slow", UserWarning)
            logger.warning("slow")
        with timed():
            warn_as("torch", "slow", UserWarning)
    assert notices.all == ()


def test_what_a_package_deprecates_and_uses_itself_is_its_own_affair():
    notices = Notices()
    with notices.listening():
        warn_as("torch", "torch.jit.script_method is deprecated", DeprecationWarning)
        warn_as("torch", "an open file", ResourceWarning, stacklevel=2)
        warn_as("torch", "you use what is deprecated", DeprecationWarning, stacklevel=2)
        warn_as("torch", "TF32 is off", UserWarning)
    assert [notice.text for notice in notices.all] == ["you use what is deprecated", "TF32 is off"]


def test_filters_and_handlers_are_as_before():
    filters, show = list(warnings.filters), warnings.showwarning
    handlers = list(logging.getLogger("transformers").handlers)
    with Notices().listening(), timed():
        assert warnings.showwarning is not show
    assert (warnings.filters, warnings.showwarning) == (filters, show)
    assert logging.getLogger("transformers").handlers == handlers


def test_a_flood_of_texts_is_cut_and_so_is_a_long_one():
    notices = Notices()
    for number in range(MOST + 7):
        notices.add("torch", f"warning {number}")
    assert len(notices.all) == MOST + 1
    assert notices.all[-1].count == 7
    notices = Notices()
    notices.add("torch", "\x1b[31m" + 1000 * "x")
    assert notices.all[0].text == f" [31m{(LONGEST - 4) * 'x'} ... (1004 characters)".strip()


def test_versions_beyond_the_tested_ones_are_a_sentence_each():
    newer = {"torch": "2.99.0.dev20261101+cpu", "transformers": "5.25.0", "numpy": "9"}
    assert beyond_tested(newer) == [
        "torch 2.99.0.dev20261101 is newer than tested (2.15.0)",
        "transformers 5.25.0 is newer than tested (5.24.0)",
    ]
    assert beyond_tested({"torch": "2.8", "transformers": "main"}) == [
        "torch 2.8 is older than tested (2.9)"
    ]
    assert beyond_tested({"torch": "2.15.0+cu130", "transformers": "4.57.6"}) == []


def test_the_source_is_a_folder_of_the_warned_file_by_its_whole_name():
    notices = Notices()
    with notices.listening():
        warnings.warn_explicit(
            "old", DeprecationWarning, str(Path("/my/torchlike/x.py")), 1, module="x"
        )
    assert len(notices.all) == 1
