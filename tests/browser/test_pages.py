"""The pages in a real browser: nothing fetched, only our script run, everything readable.

Needs Playwright's Python package (`pip install cogcalib-jax[browser]`) and a Chromium or Chrome of
the system; nothing is downloaded.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cogcalib_jax.report.report import write_report
from cogcalib_jax.studies.suite_report import write_page
from cogcalib_jax.studies.suite_results import study_findings
from tests.report.synthetic import (
    option_probs,
    write_comparison,
    write_config,
    write_evaluation,
    write_study,
    write_training,
)

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")

EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
EVIL_FILE = EVIL.replace("/", "")  # a file's name holds no slash
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def write_run(folder: Path) -> Path:
    """A single run with two tasks, subgroups, and markup wherever data can hold some."""
    write_config(folder, "ls", "adaptive")
    with (folder / "config.yaml").open("a") as file:
        file.write(f'# {EVIL}\nname: "{EVIL}"\n')
    probs, answers = option_probs(60, 2.0, options=4)
    write_evaluation(folder, "world", probs, answers, prompt=EVIL, completions=[EVIL] * 4)
    results = json.loads((folder / "eval.json").read_text())
    results[EVIL_FILE] = write_evaluation(folder, EVIL_FILE, probs, answers)
    results["world"]["by"] = {EVIL: {EVIL: dict(results["world"])}}
    results["provenance"] |= {"command": f"python train.py --note '{EVIL}'", "device": EVIL}
    (folder / "eval.json").write_text(json.dumps(results))
    write_training(folder, overconfidence=0.5)
    write_report(folder)
    return folder


def write_methods(folder: Path) -> Path:
    """A comparison with every usual method, and one whose name is markup."""
    sharpness = {"sft": 2.2, "sft_best_epoch": 1.5, "sft_temperature": 1.0}
    sharpness |= {key: 1.1 for key in ("ls", "mbls", "ecp", "ls-frozen_threshold")}
    sharpness |= {key: 1.2 for key in ("combls", "mc_dropout", "ensemble", EVIL_FILE)}
    write_comparison(folder, sharpness, n=40)
    write_report(folder)
    return folder


def write_conditions(folder: Path) -> Path:
    study = write_study(folder, methods=("sft", EVIL_FILE), command=f"run '{EVIL}'", n=40)
    first, *others = study.conditions
    first = replace(first, name=EVIL, settings=(*first.settings, f"a={EVIL}"))
    study = replace(study, conditions=(first, *others), question=EVIL, failed=(EVIL,))
    write_page(study, study_findings(study))
    return folder


WRITERS = {
    "run": write_run,
    "comparison": write_methods,
    "study": write_conditions,
}


@pytest.fixture(scope="module", params=WRITERS)
def report(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / EVIL_FILE
    return WRITERS[request.param](folder) / "report.html"


@pytest.fixture(scope="module")
def heard() -> list[str]:
    """What the page asked for or complained about."""
    return []


@pytest.fixture(scope="module", params=WIDTHS)
def page(request, browser, report, heard):
    heard.clear()
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: heard.append("dialog"))
    address = report.as_uri()
    page.on(
        "request",
        lambda request: (
            heard.append(f"request: {request.url}")
            if request.url != address and not request.url.startswith("data:")
            else None
        ),
    )
    page.goto(address, wait_until="load")
    yield page
    page.close()


def test_nothing_is_fetched_and_nothing_complained_about(page, heard):
    page.wait_for_timeout(200)
    assert heard == []


def test_every_picture_is_shown_and_said_in_words(page):
    pictures = page.eval_on_selector_all(
        "img",
        "all => all.map(i => [i.complete, i.naturalWidth, i.alt, i.width / i.height,"
        " i.naturalWidth / i.naturalHeight])",
    )
    assert len(pictures) >= 2
    for complete, width, alt, shown, natural in pictures:
        assert complete and width > 300
        assert len(alt) > 80 and any(c.isdigit() for c in alt)
        assert shown == pytest.approx(natural, rel=0.02)  # not squeezed


def test_markup_in_data_is_text(page):
    assert page.evaluate("window.hacked") is None
    assert page.locator("script:not([type])").count() == 1  # the page's own
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert "<script>window.hacked=1" in page.locator("body").inner_text()


def test_tables_have_captions_and_headers(page):
    tables = page.locator("table")
    assert tables.count() >= 2
    for table in tables.all():
        assert table.locator("caption").inner_text().strip()
        columns = table.locator("thead th[scope=col]").count()
        for row in table.locator("tbody tr").all():
            assert row.locator("th[scope=row]").count() == 1
            assert row.locator("td").count() == columns - 1


def test_the_page_fits_its_window(page):
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider scrolls by itself, and can be reached with the keyboard.
    wide = page.eval_on_selector_all(
        ".scroll", "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.tabIndex)"
    )
    assert set(wide) <= {0}
    for details in page.locator("details").all():
        details.evaluate("e => e.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_says_its_language_and_title(page):
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.title()
    assert page.locator("h1").count() == 1
    assert page.locator("nav a").count() >= 2


def test_a_click_on_a_header_sorts_its_table(page):
    table = page.locator("section table").first
    head = table.locator("thead th").nth(1)
    values = "rows => rows.map(r => parseFloat(r.cells[1].textContent))"
    for order, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        shown = table.locator("tbody tr").evaluate_all(values)
        numbers = [x for x in shown if x == x]
        assert numbers == sorted(numbers, reverse=reverse)


def test_questions_can_be_searched_and_filtered(page):
    if page.locator(".questions").count() == 0:
        pytest.skip("a page without questions")
    place = page.locator(".questions").first
    rows = place.locator(".browse tbody tr")
    place.locator("select").nth(1).select_option("all")
    everything = rows.count()
    place.locator("input[type=search]").fill("q7")
    assert 0 < rows.count() < everything
    place.locator("input[type=search]").fill("")
    place.locator("select").nth(1).select_option("wrong")
    assert (
        place.locator(".browse td.right").count() == 0 < place.locator(".browse td.wrong").count()
    )


def test_links_lead_somewhere_on_the_page(page):
    for link in page.locator("a[href^='#']").all():
        assert page.locator(f"[id='{link.get_attribute('href')[1:]}']").count() == 1


def test_the_page_reads_without_its_style(page):
    page.evaluate("document.querySelector('style').remove()")
    text = page.locator("main").inner_text()
    assert text.index("Numbers") < text.index("How these numbers were made")
