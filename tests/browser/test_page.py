"""The page in headless Chromium: nothing overlaps, nothing is cut, hostile text stays text."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfline.baselines import baseline
from perfline.cases.case import load_cases
from perfline.cases.data import find_mmlu
from perfline.gates.verdict import Flip, Verdict
from perfline.measure import record
from perfline.report import page
from perfline.report.page_inputs import Places, gather
from perfline.tasks.prompts import load_subjects, question_set_digest

REPOSITORY = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
QUIET += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
SAMPLES = ("ok", "regression", "missing", "history", "compare")

# What leaves its place: wider than the window; text outside its chart; two texts upon another.
PROBLEMS = """() => {
  const found = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push('the page scrolls sideways');
  for (const element of document.querySelectorAll('body *')) {
    if (element.closest('svg')) continue;
    const box = element.getBoundingClientRect();
    if (box.width && box.right > width + 1)
      found.push('cut: ' + element.tagName + ' ' + element.textContent.slice(0, 40));
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth)
      found.push('overflows: ' + element.tagName + ' ' + element.textContent.slice(0, 40));
  }
  for (const chart of document.querySelectorAll('svg.plot')) {
    const frame = chart.getBoundingClientRect(), name = chart.getAttribute('aria-label');
    const texts = [...chart.querySelectorAll('text')]
      .map(text => [text.textContent, text.getBoundingClientRect()]).filter(each => each[1].width);
    texts.forEach(([words, a], place) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1)
        found.push(name + ' cuts ' + words);
      for (const [others, b] of texts.slice(place + 1))
        if (a.left < b.right - 1 && b.left < a.right - 1 &&
            a.top < b.bottom - 2 && b.top < a.bottom - 2)
          found.push(name + ': ' + words + ' overlaps ' + others);
    });
  }
  return found;
}"""
UNFOLD = "() => document.querySelectorAll('details').forEach(each => each.open = true)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip(
        "playwright.sync_api", reason="no browser tests: pip install 'perfline[browser]'"
    )
    if CHROMIUM is None:
        pytest.skip("no browser tests: chromium is not installed (apt-get install chromium)")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = REPOSITORY / "scripts" / "page_samples.py"
    spec = importlib.util.spec_from_file_location("page_samples", place)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    out = tmp_path_factory.mktemp("samples")
    found = {}
    for name, files in script.make(out).items():
        records = [Path(file) for file in files if not file.startswith("--")]
        inputs = gather(records, Places(out / name / "baselines"))
        found[name] = out / f"{name}.html"
        found[name].write_text(page.html(inputs), encoding="utf-8")
    return found


def opened(browser: Any, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page, opened without network, and all that it asked for but itself."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    tab, asked = context.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: asked.append(message.text))
    tab.goto(path.as_uri())
    return tab, asked[1:]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_overlaps_and_nothing_is_cut(browser, pages, name, width, scheme):
    tab, asked = opened(browser, pages[name], width, scheme)
    try:
        assert asked == []
        assert tab.evaluate(PROBLEMS) == []
        tab.evaluate(UNFOLD)
        assert tab.evaluate(PROBLEMS) == []
        back = tab.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    finally:
        tab.context.close()


def test_200_records_are_below_2_mb_and_open_in_2_s(browser, pages):
    assert pages["history"].stat().st_size < 2_000_000
    start = time.monotonic()
    tab, _ = opened(browser, pages["history"], 1280, "light")
    tab.screenshot()
    took = time.monotonic() - start
    rows, charts = tab.locator(".subjects tbody tr").count(), tab.locator("svg.plot").count()
    tab.context.close()
    assert rows == 2 * 57
    assert charts > 20
    assert took < 2


def test_every_axis_has_a_unit_or_says_what_it_counts(browser, pages):
    for name in SAMPLES:
        tab, _ = opened(browser, pages[name], 1280, "light")
        labels = tab.evaluate(
            "() => [...document.querySelectorAll('svg.plot')].map(chart =>"
            " [...chart.querySelectorAll('.label')].map(label => label.textContent).join(' | '))"
        )
        tab.context.close()
        units = ("tok/s", "GiB", "s", "%", "MHz", "count")
        for label in labels:
            assert any(f" {unit}" in f" {label}" for unit in units), (name, label)


def test_it_prints_light_whatever_the_screen_is(browser, pages):
    tab, _ = opened(browser, pages["regression"], 720, "dark")
    tab.emulate_media(media="print", color_scheme="dark")
    ink = tab.evaluate("() => getComputedStyle(document.querySelector('h2')).color")
    found = tab.evaluate(PROBLEMS)
    tab.context.close()
    assert ink == "rgb(27, 31, 36)"
    assert found == []


def test_a_question_that_is_a_script_stays_text(browser, tmp_path):
    evil = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    (case,) = load_cases(["tiny"])
    home = tmp_path / "data" / case.model.case_dir
    shutil.copytree(find_mmlu(case, None), home / case.mmlu.mmlu_dir)
    path = next((home / case.mmlu.mmlu_dir / "test").glob("*_test.csv"))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    rows[0][:2] = [evil, evil]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    subjects = load_subjects(home / case.mmlu.mmlu_dir, case.mmlu.few_shots)
    flip = Flip(f"{path.name.removesuffix('_test.csv')}/0", "A", "A", "B", 0.1)
    judged = Verdict("acc_infer", "regressed", "baseline", "fraction", reason=evil, flips=(flip,))
    measured = record.CaseRecord(
        case="tiny",
        title=evil,
        digest=case.digest(),
        dtype="fp32",
        weights="real",
        verdicts=(judged,),
        facts={"mmlu": question_set_digest(subjects)},
        errors=(evil,),
    )
    environment = record.Environment("cpu-test", evil, "cpu", {evil: evil})
    run = tmp_path / "run.json"
    record.save(run, record.Record("2026-11-22", False, environment, {"tiny": measured}))
    inputs = gather([run], Places(tmp_path / baseline.PUBLISHED, (), tmp_path / "data"))
    target = tmp_path / "page.html"
    target.write_text(page.html(inputs), encoding="utf-8")
    tab, asked = opened(browser, target, 1280, "light")
    tab.evaluate(UNFOLD)
    title, shown = tab.title(), tab.locator(".question").inner_text()
    elements = tab.locator("script, img").count()
    tab.context.close()
    assert shown == evil
    assert (title, elements, asked) == ("perfline: 1 could not be measured, regressed", 0, [])
