"""A suite: every cell once, whatever interrupts it; one table at the end."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from cogcalib_jax.cli.run_folder import resumable, write_config
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import Preempted, UserError
from cogcalib_jax.studies import main, suite
from cogcalib_jax.studies.suite import SuiteConfig, cells, listing, parse_condition, run_cells
from tests.cli.small_base import arguments, write_base

CONDITIONS = (
    "'plain'",
    "'few known' composition.known_share=0.25 composition.by=world compare=sft",
)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A preset whose cells take a second or two, apart from compiling."""
    folder = tmp_path_factory.mktemp("suite")
    words = arguments(write_base(folder / "base"), folder / "unused")
    tree = {"compare": ["sft", "ls"]}
    for option, value in zip(words[::2], words[1::2], strict=True):
        *sections, name = option[2:].replace("-", "_").split(".")
        if name == "run_dir":
            continue
        level = tree
        for section in sections:
            level = level.setdefault(section, {})
        level[name] = yaml.safe_load(value)
    path = folder / "preset.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def write_suite(folder, base, **more):
    content = {
        "preset": str(base),
        "question": "Which?",
        "seeds": [0, 1],
        "conditions": list(CONDITIONS),
        "across": ["sft"],
    }
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(content | more), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    argv = [str(write_suite(folder, preset)), "--folder", str(folder / "out")]
    # The first cell's report stands for all: drawing one takes as long as a run.
    reports = iter([suite.write_report])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "write_report", lambda run: next(reports, fake_report)(run))
        main([*argv, "--out", str(folder / "copy.md")])
    return folder


@pytest.mark.slow
def test_one_tidy_table_holds_every_cell_method_and_task(finished):
    lines = (finished / "out" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    keys = [(r["condition"], r["seed"], r["method"], r["task"]) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {key[:2] for key in keys} == {(c, s) for c in ("plain", "few known") for s in (0, 1)}
    assert {r["method"] for r in rows if r["condition"] == "few known"} >= {"sft", "sft_best_epoch"}
    assert "ls" in {r["method"] for r in rows if r["condition"] == "plain"}
    with (finished / "out" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["ece"] for row in table] == [str(row["ece"]) for row in rows]
    # The numbers are those of the cells' own files.
    row = next(r for r in rows if r["method"] == "ls" and r["seed"] == 1)
    own = json.loads((finished / "out" / "plain" / "seed-1" / "ls" / "eval.json").read_text())
    assert row["nll"] == own[row["task"]]["nll"]


def test_tables_in_markdown_set_conditions_side_by_side(finished):
    text = (finished / "copy.md").read_text()
    assert text.startswith("    cogcalib study ")
    assert "Which?" in text and "## few known" in text
    assert "conditions against plain" in text
    assert "few known" in text and "±" in text


def test_cells_that_only_differ_later_share_the_style_phase(finished):
    """Same style data, same seed: its checkpoint is copied and not trained again."""
    out = finished / "out"
    for seed in (0, 1):
        first, second = (out / name / f"seed-{seed}" / "style" for name in ("plain", "few-known"))
        journals = [(folder / "metrics.jsonl").read_text() for folder in (first, second)]
        assert journals[0] == journals[1]  # times included: it is a copy


def test_a_finished_suite_runs_nothing_again(finished, monkeypatch):
    monkeypatch.setattr(suite, "train_run", lambda *_: pytest.fail("ran again"))
    before = (finished / "out" / "results.md").read_text()
    main([str(finished / "quick.yaml"), "--folder", str(finished / "out")])
    assert (finished / "out" / "results.md").read_text() == before


def test_a_cell_of_another_preset_is_refused(finished, capsys):
    main_argv = [str(finished / "quick.yaml"), "--folder", str(finished / "out")]
    with pytest.raises(UserError, match="cells failed"):
        main([*main_argv, "--compare", "sft,ecp"])
    text = (finished / "out" / "plain" / "seed-0" / "failure.txt").read_text()
    assert "compare" in text
    capsys.readouterr()


def planned(preset, folder, **more):
    config = SuiteConfig(preset=str(preset), conditions=CONDITIONS, seeds=(0,), **more)
    return cells(config, folder)


def test_tables_of_a_method_that_nobody_trains_are_refused_before_any_work(preset, tmp_path):
    planned(preset, tmp_path, across=("sft", "ls", "sft_best_epoch"), followed=("ls",))
    with pytest.raises(UserError, match="across names 'cols', which no condition has; it has sft"):
        planned(preset, tmp_path, across=("sft", "cols"))
    with pytest.raises(UserError, match="followed names 'sft_best_epoch'"):
        planned(preset, tmp_path, followed=("sft_best_epoch",))


def fake_run(config, name, argv, style):
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("")
    (folder / "style").mkdir(exist_ok=True)
    (folder / "comparison.json").write_text("{}")


def fake_report(folder):
    (folder / "report.html").write_text("")


def test_a_failing_cell_is_reported_and_the_others_go_on(preset, tmp_path, monkeypatch):
    def run(config, *rest):
        if config.composition.known_share is None:
            raise RuntimeError("no power")
        fake_run(config, *rest)

    monkeypatch.setattr(suite, "train_run", run)
    monkeypatch.setattr(suite, "write_report", fake_report)
    plan = planned(preset, tmp_path)
    (failed,) = run_cells(plan, tmp_path)
    assert failed.condition == "plain"
    assert "no power" in (failed.folder / "failure.txt").read_text()
    assert [cell.finished for cell in plan] == [False, True]


def test_an_interrupted_cell_is_resumed(preset, tmp_path, monkeypatch):
    plan = planned(preset, tmp_path)
    seen = []

    def run(config, *rest):
        seen.append(config.resume)
        if len(seen) == 1:
            Path(config.run_dir).mkdir(parents=True)
            (Path(config.run_dir) / "config.yaml").write_text("")
            raise KeyboardInterrupt
        fake_run(config, *rest)

    monkeypatch.setattr(suite, "train_run", run)
    monkeypatch.setattr(suite, "write_report", fake_report)
    with pytest.raises(KeyboardInterrupt):
        run_cells(plan, tmp_path)
    assert run_cells(plan, tmp_path) == []
    assert seen == [False, True, False]


@pytest.mark.parametrize("kind", [Preempted, KeyboardInterrupt])
def test_a_stopped_suite_names_its_own_command_and_not_that_of_a_cell(
    preset, tmp_path, monkeypatch, kind
):
    def run(config, *rest):
        fake_run(config, *rest)
        with resumable(Path(config.run_dir), "python train.py --resume --run-dir cell"):
            raise kind

    monkeypatch.setattr(suite, "train_run", run)
    file = str(write_suite(tmp_path, preset))
    out = tmp_path / "my out"
    with pytest.raises(kind) as stopped:
        main([file, "--folder", str(out)])
    assert stopped.value.command == f"cogcalib study {file} --folder '{out}'"


def test_a_cell_without_its_report_gets_it_at_the_next_start(preset, tmp_path, monkeypatch):
    """It was killed over the report, or failed there: it is not trained again."""
    plan = planned(preset, tmp_path)
    trained = []

    def run(config, *rest):
        fake_run(config, *rest)
        write_config(Path(config.run_dir), config)
        trained.append(config.run_dir)

    def broken(folder):
        raise RuntimeError("no ink")

    monkeypatch.setattr(suite, "train_run", run)
    monkeypatch.setattr(suite, "write_report", broken)
    assert run_cells(plan, tmp_path) == plan
    assert not any(cell.finished for cell in plan)
    monkeypatch.setattr(suite, "write_report", fake_report)
    assert run_cells(plan, tmp_path) == []
    assert all(cell.finished for cell in plan) and len(trained) == len(plan)
    assert not list(tmp_path.rglob("failure.txt"))


def test_a_dry_run_tells_the_state_of_every_cell(preset, tmp_path):
    first, second = plan = planned(preset, tmp_path)
    assert listing(plan).count("to do") == 2
    for cell, file in ((first, "failure.txt"), (second, "config.yaml")):
        cell.folder.mkdir(parents=True)
        (cell.folder / file).write_text("")
    assert "failed, runs again" in listing(plan) and "begun" in listing(plan)
    assert "2 cells, 2 still to run" in listing(plan)
    fake_run(second.config, "", [], None)
    fake_report(second.folder)
    assert "finished" in listing(plan) and "2 cells, 1 still to run" in listing(plan)


def test_the_plan_lists_cells_and_runs_nothing(finished, capsys):
    main([str(finished / "quick.yaml"), "--folder", str(finished / "new"), "--dry-run", "true"])
    text = capsys.readouterr().out
    assert text.count("to do") == 4 and "4 cells, 4 still to run" in text
    assert not (finished / "new").exists()


SUITES = sorted((Path(__file__).resolve().parents[2] / "configs" / "suites").glob("*.yaml"))


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_every_suite_of_ours_can_be_planned(path, tmp_path):
    config = load_config(SuiteConfig, ["--config", str(path)], prog="", description="").config
    assert config.question
    assert len(cells(config, tmp_path)) == len(config.conditions) * len(config.seeds)


def test_a_suite_is_found_by_name_wherever_one_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for word in ("world_quick", "suites/world_quick", "world_quick.yaml"):
        main([word, "--dry-run", "true"])
        assert capsys.readouterr().out.count("to do") == 6
    Path("own.yaml").write_text("compare: [sft]\nseeds: [7]\n")
    main(["own.yaml", "--dry-run", "true"])
    assert "1 cell, 1 still to run" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["world_quik"], "study is 'world_quik'; did you mean world_quick"),
        (["tuna"], "did you mean tune"),
        (["xyz"], "expected a file or one of obqa_deletion, "),
        (["none.yaml"], "none.yaml: cannot be read"),
        ([], "no study is named; expected a suite or one of tune, frontier, detector"),
        (["--seeds", "0"], "no study is named"),
    ],
)
def test_a_study_that_does_not_exist_is_named_with_those_that_do(words, message):
    with pytest.raises(UserError, match=message):
        main(words)


def test_help_lists_suites_and_commands(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {path.stem}\n" in text for path in SUITES)
    assert "  tune " in text and "  detector " in text


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("'plain'", ("plain", ())),
        ("'two words' a.b=1 c=x=y", ("two words", ("--a.b", "1", "--c", "x=y"))),
    ],
)
def test_conditions_are_a_name_and_settings(entry, wanted):
    assert parse_condition(entry) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": ["'a'", "'a'"]}, "different names"),
        ({"conditions": ["a"]}, "a name in quotes; a list in a setting needs brackets"),
        ({"conditions": ["a b"]}, "PATH=VALUE"),
        ({"conditions": ["a nothing.like=1"]}, "nothing"),
        ({"conditions": ["a lora.r=much"]}, "lora.r"),
        ({"conditions": ["'a/b'", "'a-b'"]}, "one folder"),
        ({"conditions": ["a seed=5"]}, "must not set seed; name them in seeds"),
        ({"conditions": ["a run-dir=x"]}, "must not set run-dir; cells lie in folder"),
        ({"conditions": ["a resume=true"]}, "must not set resume"),
        ({"conditions": ["a dry_run=true"]}, "must not set dry_run"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"preset": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_mistakes_in_a_suite_are_found_before_anything_runs(preset, tmp_path, change, message):
    path = write_suite(tmp_path, preset, **change)
    with pytest.raises(UserError, match=message):
        main([str(path), "--folder", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--folder", "--out"])
def test_places_that_cannot_be_written_are_refused_before_any_cell(
    preset, tmp_path, option, monkeypatch
):
    monkeypatch.setattr(suite, "train_run", lambda *_: pytest.fail("ran"))
    (tmp_path / "file").write_text("")
    places = {"--folder": tmp_path / "new", "--out": tmp_path / "copy.md"}
    places[option] = tmp_path / "file" if option == "--folder" else tmp_path
    words = [str(word) for pair in places.items() for word in pair]
    with pytest.raises(UserError, match="cannot be written"):
        main([str(write_suite(tmp_path, preset)), *words])
