"""A study becomes one page and one Markdown file, from its runs alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cogcalib_jax.studies.suite_report import write_page
from cogcalib_jax.studies.suite_results import study_findings, study_markdown
from tests.report.synthetic import write_study
from tests.report.test_report import read_page

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), seeds=SEEDS)


@pytest.fixture(scope="module")
def found(study):
    return study_findings(study)


@pytest.fixture(scope="module")
def page(study, found):
    write_page(study, found)
    return read_page(study.folder)


def values(study, share: float, method: str, name: str) -> list[float]:
    """From the files, without the report's own reading of them."""
    files = [study.folder / f"share-{share}/seed-{s}/comparison.json" for s in SEEDS]
    return [json.loads(file.read_text())[method]["world"][name] for file in files]


def test_conditions_stand_side_by_side_with_mean_and_standard_deviation(study, found):
    rows = {row[:2]: row for row in found.side_by_side["world"].rows}
    eces = values(study, 0.5, "sft", "ece")
    assert rows["SFT", "50% known"][5].startswith(
        f"{np.mean(eces):.3f} ± {np.std(eces, ddof=1):.3f}"
    )
    assert rows["SFT", "50% known"][2] == "2"
    assert len(rows) == 6


def test_conditions_are_subtracted_from_the_first_on_the_same_questions(study, found):
    (table,) = found.across["world"].values()
    row = next(row for row in table.rows if row[0] == "100% known minus 0% known")
    wanted = np.subtract(values(study, 1.0, "sft", "nll"), values(study, 0.0, "sft", "nll"))
    assert [float(cell) for cell in row[1].split()] == pytest.approx(wanted, abs=5e-4)


def test_the_ratio_curve_says_its_means_in_words(study, page):
    ratio, seeds, *_ = (image["alt"] for image in page.all("img"))
    means = {name: np.mean(values(study, 1.0, "sft", name)) for name in ("ece", "confidence")}
    assert f"SFT, 100 % known: ECE {means['ece']:.3f}" in ratio
    assert f"mean confidence {100 * means['confidence']:.1f} %" in ratio
    assert f"SFT, 100% known: ECE {means['ece']:.3f}" in seeds
    assert "2 seeds" in seeds


def test_every_condition_has_its_table_and_links_to_its_runs(study, page):
    for condition in study.conditions:
        assert f"Condition: {condition.name}" in page.text
        assert f"Changed in configs/world.yaml: {', '.join(condition.settings)}." in page.text
    shown = [a["href"] for a in page.all("a") if "download" not in a]
    links = [target for target in shown if not target.startswith("#")]
    assert links == [f"share-{s}/seed-{n}/report.html" for s in (0.0, 0.5, 1.0) for n in SEEDS]


def test_training_is_shown_for_every_condition(study, page, found):
    """From the recipe of the synthetic runs: the same in every seed, surer the larger the share."""
    alts = [image["alt"] for image in page.all("img")][2:]
    assert len(alts) == len(study.conditions)
    last = json.loads(
        (study.folder / "share-1.0/seed-1/sft/dynamics.jsonl").read_text().splitlines()[-1]
    )
    assert (last["data"], last["group"]) == ("validation", "unknown")
    assert alts[-1].startswith("Means of 2 seeds.")
    assert f"to {100 * last['confidence']:.1f} %" in alts[-1].split("SFT, unknown questions not")[1]
    assert "SFT over training" in page.text and "CoLS over training" in page.text
    text = study_markdown(study, found)
    assert text.count("### SFT over training") == len(study.conditions)


def test_only_the_methods_named_are_shown_over_training(study):
    some = replace(study, followed=("cols",), folder=study.folder)
    for tables in study_findings(some).training.values():
        assert list(tables) == ["CoLS over training"]


def test_the_page_holds_the_commands_and_configs_of_every_run(study, page):
    assert study.command in page.text and study.configuration in page.text
    for condition in study.conditions:
        for run in condition.runs.values():
            assert run.configs["config.yaml"] in page.text
            assert f"python train.py --config {run.folder / 'config.yaml'}" in page.text
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    inside = {a["href"][1:] for a in page.all("a") if a.get("href", "").startswith("#")}
    assert inside <= targets


def test_conditions_that_differ_in_more_than_the_share_make_no_curve(study, tmp_path):
    first, second, third = study.conditions
    other = replace(third, settings=(*third.settings, "lora.r=2"))
    mixed = replace(study, conditions=(first, second, other))
    folder = study.folder
    (folder / "plots" / "ratio.png").unlink(missing_ok=True)
    write_page(mixed, study_findings(mixed))
    page = read_page(folder)
    assert "100 % known" not in page.all("img")[0]["alt"]
    alone = replace(study, conditions=(first, other))
    write_page(alone, study_findings(alone))
    alts = [image["alt"] for image in read_page(folder).all("img")]
    assert len(alts) == 3 and not any("over the known share" in alt for alt in alts)


def test_one_condition_with_one_seed_is_a_study_too(tmp_path):
    study = write_study(tmp_path, shares=(0.5,), seeds=(3,))
    found = study_findings(study)
    assert found.side_by_side == {}
    write_page(study, found)
    page = read_page(tmp_path)
    assert "Seeds on world" in page.text
    assert "Results over the whole vocabulary" in page.text
    assert "### world" in study_markdown(study, found)


def test_what_failed_is_said(study, found):
    lacking = replace(study, failed=("50% known, seed 7",))
    write_page(lacking, found)
    assert "they failed: 50% known, seed 7." in read_page(study.folder).text
    assert "they failed: 50% known, seed 7." in study_markdown(lacking, found)
    assert "failed" not in study_markdown(study, found)


def test_markdown_holds_the_tables_of_the_page(study, found):
    text = study_markdown(study, found)
    assert text.startswith("# ratios\n\nDoes known data harm?")
    order = ["## Conditions side by side: world", "### SFT: conditions against 0% known, world"]
    order += [f"## {condition.name}" for condition in study.conditions]
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)
