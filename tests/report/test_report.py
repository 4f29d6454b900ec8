"""A run folder becomes pictures, a page and the text to print, from its files alone."""

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.report.comparison import findings
from cogcalib_jax.report.html import browse_questions
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.report.report import write_evaluation_report, write_report
from cogcalib_jax.report.text import short_name
from tests.report.synthetic import (
    option_probs,
    write_comparison,
    write_config,
    write_evaluation,
    write_training,
)

SHARPNESS = {"sft": 2.2, "sft_best_epoch": 1.5, "sft_temperature": 1.0, "ls": 1.0, "cols": 1.1}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[Path, str, dict]:
    folder = tmp_path_factory.mktemp("runs") / "world-1"
    table = write_comparison(folder, SHARPNESS, n=400)
    return folder, write_report(folder), table


class Page(HTMLParser):
    """Collects what the page is made of, and that its elements are closed in order."""

    VOID = {"meta", "img", "link", "br"}

    def scripts(self) -> list[dict]:
        """Return all scripts but the page's own: its last one, and the data of questions."""
        data = {"type": "application/json"}
        found = [attrs for attrs in self.all("script") if attrs != data]
        assert found[-1] == {}
        return found[:-1]

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def read_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_printed_table_holds_the_numbers_of_comparison_json(comparison):
    _, text, table = comparison
    for name, key in (("SFT  ", "sft"), ("CoLS  ", "cols"), ("LS on all", "ls")):
        line = next(line for line in text.split("\n") if line.startswith(name))
        m = table[key]["world"]
        for shown in (m["ece"], m["ece_noise_floor"]["p95"], m["brier"], m["nll"], m["auroc"]):
            assert f"{shown:.3f}" in line
        assert f"{100 * m['accuracy']:.1f} %" in line
        assert f"{100 * m['coverage_at_90']:.1f} %" in line


def test_the_text_ends_with_verdict_and_files(comparison):
    folder, text, _ = comparison
    assert text.index("Better than SFT beyond noise") < text.index("Effect of the gate")
    assert f"Report: {folder / 'report.html'}" in text


NAMES = ["reliability", "confidence", "coverage", "loss", "dynamics", "threshold"]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_something(comparison, name):
    folder, _, _ = comparison
    image = matplotlib.image.imread(folder / "plots" / f"{name}.png")[..., :3]
    assert image.shape[0] > 300
    assert image.shape[1] > 600
    ink = (image < 0.97).any(-1)
    assert 0.03 < ink.mean() < 0.9
    colors = (image.reshape(-1, 3) * 15).astype(int) @ [256, 16, 1]
    assert len(np.unique(colors)) > 30


def test_nothing_is_drawn_on_the_pictures_edges(comparison):
    folder, _, _ = comparison
    for path in (folder / "plots").glob("*.png"):
        image = matplotlib.image.imread(path)[..., :3]
        for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
            assert (edge > 0.97).all(), f"{path.name} is cut off"


def test_the_page_needs_no_network_and_says_every_picture_in_words(comparison):
    folder, _, table = comparison
    page = read_page(folder)
    images = page.all("img")
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    said = dict(zip(NAMES, (image["alt"] for image in images), strict=True))
    m = table["sft"]["world"]
    right = round(m["accuracy"] * m["n"])
    assert f"ECE {m['ece']:.3f}" in said["reliability"]
    assert f"SFT: {right} right answers with mean confidence" in said["confidence"]
    assert f"AUROC {m['auroc']:.3f}" in said["confidence"]
    assert "Share answered at 90 % accuracy: SFT" in said["coverage"]
    assert "unknown questions not trained on: accuracy from" in said["dynamics"]
    lines = [json.loads(x) for x in (folder / "sft" / "metrics.jsonl").read_text().splitlines()]
    fits = [line["threshold"] for line in lines if line["phase"] == "refit"]
    assert f"SFT: threshold from {fits[0]:.3f} nats to {fits[-1]:.3f} nats" in said["threshold"]
    assert fits[0] != fits[-1]
    assert not page.scripts() and not page.all("link")
    assert "SFT: training from" in said["loss"] and "lowest 0.9" in said["loss"]
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", html) == []
    assert "url(" not in html


def test_tables_of_the_page_mark_their_headers(comparison):
    folder, _, _ = comparison
    page = read_page(folder)
    assert len(page.all("table")) == len(page.all("caption")) == 5 + 5  # one of mistakes a method
    headers = page.all("th")
    assert {attrs["scope"] for attrs in headers} == {"col", "row"}
    assert sum(attrs["scope"] == "row" for attrs in headers) == 5 + 7 + 5 + 5 * 20 + 3 + 6
    assert "CoLS (label smoothing on known data, Wang et al. 2025)" in page.text


def test_the_page_holds_config_and_provenance(comparison):
    folder, _, _ = comparison
    page = read_page(folder)
    assert (folder / "config.yaml").read_text() in page.text
    assert "0123abc" in page.text
    assert f"python train.py --config {folder / 'config.yaml'}" in page.text


def test_a_recorded_command_is_shown_as_it_was(tmp_path):
    run = single_run(tmp_path / "run")
    results = json.loads((run / "eval.json").read_text())
    results["provenance"]["command"] = "python train.py --method.name cols --seed 3"
    (run / "eval.json").write_text(json.dumps(results))
    write_report(run)
    assert "python train.py --method.name cols --seed 3" in read_page(run).text


def test_every_section_names_its_files_and_the_page_its_commands_and_configs(tmp_path):
    write_comparison(tmp_path, {"sft": 2.0, "sft_temperature": 1.0, "cols": 1.2}, n=30)
    write_config(tmp_path / "cols", "ls", "adaptive")
    for key in ("sft", "sft_temperature", "cols"):
        results = json.loads((tmp_path / key / "eval.json").read_text())
        results["provenance"]["command"] = "python train.py --compare sft,cols"
        (tmp_path / key / "eval.json").write_text(json.dumps(results))
    write_report(tmp_path)
    page = read_page(tmp_path)
    assert page.text.count("python train.py --compare sft,cols") == 1
    assert (tmp_path / "cols" / "config.yaml").read_text() in page.text
    # The task and training.
    assert [a.get("href") for a in page.all("a")].count("#making") == 2 + 1
    assert "Numbers: METHOD/eval.json, METHOD/predictions/world.jsonl." in page.text
    assert "Numbers: METHOD/metrics.jsonl, METHOD/dynamics.jsonl." in page.text


def test_subgroups_have_a_table_of_their_own(tmp_path):
    run = single_run(tmp_path / "run")
    results = json.loads((run / "eval.json").read_text())
    world = results["world"]
    world["by"] = {"relation": {"born <here>": dict(world), "plays": dict(world)}}
    (run / "eval.json").write_text(json.dumps(results))
    write_report(run)
    page = read_page(run)
    assert "Results by relation" in page.text and "born <here>" in page.text


def test_a_threshold_that_could_not_be_fitted_is_said(tmp_path):
    run = single_run(tmp_path / "run")
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["phase"] == "refit":
            line["threshold"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    write_report(run)
    assert "threshold from undefined to undefined" in read_page(run).all("img")[-1]["alt"]


def test_without_a_log_of_training_its_pictures_are_left_out(tmp_path):
    run = single_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    (run / "dynamics.jsonl").unlink()
    write_report(run)
    page = read_page(run)
    assert len(page.all("img")) == 3
    assert "Training" not in page.text


def single_run(folder: Path, *, n: int = 60, task: str = "world", sharpness: float = 2.0) -> Path:
    write_config(folder, "ls", "adaptive")
    probs, answers = option_probs(n, sharpness, options=4)
    write_evaluation(folder, task, probs, answers)
    write_training(folder, overconfidence=0.5)
    return folder


def test_a_single_run_has_one_row_and_no_verdict_on_differences(tmp_path):
    run = single_run(tmp_path / "run")
    text = write_report(run)
    assert text.count("\nCoLS  ") == 1
    assert "SFT" not in text
    assert "gate" not in text
    names = {f"{name}.{form}" for name in NAMES for form in ("png", "svg")}
    assert {p.name for p in (run / "plots").iterdir()} == names


@pytest.mark.parametrize("n", [1, 3])
def test_a_handful_of_rows_is_reported(tmp_path, n):
    run = single_run(tmp_path / "run", n=n)
    (run / "dynamics.jsonl").unlink()
    text = write_report(run)
    assert f"n = {n} question" in text
    assert not (run / "plots" / "dynamics.png").exists()


def test_every_task_is_on_the_page_and_the_trained_one_is_printed(tmp_path):
    run = single_run(tmp_path / "run")
    results = json.loads((run / "eval.json").read_text())
    probs, answers = option_probs(50, 1.0, options=4)
    results["mmlu:history"] = write_evaluation(run, "mmlu:history", probs, answers)
    (run / "eval.json").write_text(json.dumps(results))
    text = write_report(run)
    assert "also: mmlu:history" in text
    assert text.count("accuracy") == write_report(single_run(tmp_path / "alone")).count("accuracy")
    page = read_page(run)
    assert "Results on world" in page.text and "Results on mmlu:history" in page.text
    assert (run / "plots" / "coverage_mmlu_history.png").exists()
    assert len(page.all("img")) == 3 + 3 + 3


def test_markup_from_data_is_shown_and_not_run(tmp_path):
    evil = "<script>\" onerror=\"alert('x')"
    run = single_run(tmp_path / "run")
    results = json.loads((run / "eval.json").read_text())
    results[evil] = results.pop("world")
    results["provenance"]["device"] = evil
    (run / "eval.json").write_text(json.dumps(results))
    (run / "predictions" / "world.jsonl").rename(run / "predictions" / f"{evil}.jsonl")
    with (run / "config.yaml").open("a") as file:
        file.write(f"# {evil}\n")
    write_report(run)
    page = read_page(run)
    assert not page.scripts()
    assert page.text.count(evil) >= 4  # title of the section, lead, provenance, config
    assert all("onerror" not in attrs for _, attrs in page.tags)


def test_only_the_pages_own_script_may_run(comparison):
    folder, _, _ = comparison
    html = (folder / "report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (m["content"] for m in read_page(folder).all("meta") if "http-equiv" in m)
    assert policy.split("script-src ")[1] == f"'sha256-{digest}'"
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_answer_is_on_the_page_for_its_script_and_the_mistakes_without_it(comparison):
    folder, _, table = comparison
    html = (folder / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    assert len(data["questions"]) == 400 and set(data["questions"][0]) == {"id", "text", "answer"}
    assert list(data["answers"]) == [short_name(key) for key in SHARPNESS]
    right = [right for _, right, _ in data["answers"]["CoLS"]]
    assert np.mean(right) == table["cols"]["world"]["accuracy"]
    assert "The surest mistakes of CoLS" in read_page(folder).text


def test_questions_of_a_page_cannot_end_their_element(tmp_path):
    run = single_run(tmp_path / "run")
    path = run / "predictions" / "world.jsonl"
    path.write_text(path.read_text().replace("question 3 answer", "</script>\\u2028<b>&"))
    write_report(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    assert any(q["text"].startswith("</script>\u2028<b>&") for q in data["questions"])


def test_a_large_page_keeps_the_surest_mistakes_and_says_so(tmp_path, monkeypatch):
    run = single_run(tmp_path / "run")
    monkeypatch.setattr("cogcalib_jax.report.html.MOST", 10)
    found = browse_questions(read_run(run), "world")
    assert len(found.data["questions"]) == 10
    assert found.note.startswith("10 questions of 60 are on this page")
    answers = next(iter(found.data["answers"].values()))
    assert not any(right for _, right, _ in answers)


def test_tables_and_figures_can_be_saved(comparison):
    folder, _, _ = comparison
    links = [a for a in read_page(folder).all("a") if "download" in a]
    sheets = [a["href"] for a in links if a["download"].endswith(".csv")]
    assert len(sheets) == 10 and all(x.startswith("data:text/csv;charset=utf-8,") for x in sheets)
    rows = list(csv.reader(unquote(sheets[0].partition(",")[2]).splitlines()))
    assert rows[0][:2] == ["method", "accuracy"] and rows[1][0] == "SFT"
    assert sum(a["download"].endswith(".svg") for a in links) == len(NAMES)
    lines = list(csv.DictReader((folder / "comparison.csv").open()))
    assert [line["model"] for line in lines] == list(SHARPNESS)
    assert {line["minus"] for line in lines} == {"", "sft"}


def test_an_evaluation_has_the_same_page(tmp_path):
    write_comparison(tmp_path, {"one": 2.0, "two": 1.2}, n=60)
    for name in ("one", "two"):
        results = json.loads((tmp_path / name / "eval.json").read_text())
        results["provenance"]["data_hash"] = {"world": "same"}
        (tmp_path / name / "eval.json").write_text(json.dumps(results))
    assert write_evaluation_report(tmp_path) == tmp_path / "report.html"
    page = read_page(tmp_path)
    assert "Evaluation report" in page.text
    assert all(f"Can I trust the confidence of {name}?" in page.text for name in ("one", "two"))
    assert "two minus one" in page.text and len(page.all("img")) == 3
    alone = tmp_path / "alone"
    write_evaluation_report(single_run(alone), "cols", ["Without a temperature."])
    told = read_page(alone).text
    assert "CoLS: 60 test questions of world." in told and "Without a temperature." in told
    assert "Can I trust its confidence?" in told


@pytest.mark.slow
def test_reporting_again_changes_nothing(tmp_path):
    run = single_run(tmp_path / "run")
    first = write_report(run), read_bytes(run)
    assert (write_report(run), read_bytes(run)) == first


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_users_plot_settings_stay_as_they_are(tmp_path):
    run = single_run(tmp_path / "run")
    write_report(run)
    plain = (run / "plots" / "coverage.png").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        write_report(run)
        assert dict(matplotlib.rcParams) == before
    assert (run / "plots" / "coverage.png").read_bytes() == plain


def test_methods_that_answered_different_questions_are_refused(tmp_path):
    write_comparison(tmp_path, {"sft": 2.0, "cols": 1.0}, n=30)
    path = tmp_path / "cols" / "predictions" / "world.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="different questions of world"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("eval.json", "nothing to report"),
        ("config.yaml", "no config.yaml"),
        ("predictions/world.jsonl", r"remove .*run/eval\.json and resume the run"),
    ],
)
def test_a_missing_file_is_named(tmp_path, broken, message):
    run = single_run(tmp_path / "run")
    (run / broken).unlink()
    with pytest.raises(UserError, match=message):
        write_report(run)


def test_a_broken_line_is_named_with_its_number(tmp_path):
    run = single_run(tmp_path / "run")
    with (run / "predictions" / "world.jsonl").open("a") as file:
        file.write('{"id": ')
    with pytest.raises(UserError, match=r"world\.jsonl:61: damaged \(Expecting value"):
        write_report(run)


DAMAGED = {
    "bytes": ("predictions/world.jsonl", b"\xff\n", r"world\.jsonl:1: damaged \(not UTF-8"),
    "a list": ("predictions/world.jsonl", b"[1]\n", r"world\.jsonl:1: damaged \(an entry"),
    "no options": ("predictions/world.jsonl", b'{"id": "a"}\n', "a row is damaged .no entry"),
    "options in words": ("predictions/world.jsonl", b'{"option_probs": 3}\n', "a row is damaged"),
    "dynamics of nothing": ("dynamics.jsonl", b'{"step": 1}\n', r":1: damaged .no entry 'data'"),
    "a fit without its threshold": ("metrics.jsonl", b'{"step": 1, "phase": "refit"}\n',
                                    r":1: damaged .no entry 'threshold'"),
    "no phase": ("metrics.jsonl", b'{"step": 1}\n', r":1: damaged .no entry 'phase'"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_line_is_told_with_what_to_do(tmp_path, what):
    name, content, message = DAMAGED[what]
    run = single_run(tmp_path / "run")
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{message}.*resume the run \(--resume\)"):
        write_report(run)


def test_seeds_are_put_together_in_one_table(tmp_path):
    folders = [tmp_path / f"s{seed}" for seed in range(2)]
    for seed, folder in enumerate(folders):
        write_comparison(folder, {"sft": 2.0, "cols": 1.0}, n=60, seed=seed)
    text = findings([read_run(folder) for folder in folders], "world").as_markdown()
    eces = [json.loads((f / "comparison.json").read_text())["sft"]["world"]["ece"] for f in folders]
    assert f"{np.mean(eces):.3f} ± {np.std(eces, ddof=1):.3f}" in text
    assert "too few" in text
