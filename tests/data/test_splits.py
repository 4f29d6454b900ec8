"""No row, question or group lies in two splits, whatever the rows, sizes and seed."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import Example, question_clusters, question_key, unlabelled
from cogcalib_jax.data.splits import Official, make_splits, require_apart
from cogcalib_jax.errors import UserError


def example(name, question, group=None, choices=("yes", "no")):
    return Example(id=name, question=question, choices=choices, answer=0, group=group)


def config(**fields):
    return DataConfig(task="openbookqa", **fields)


def own(**fields):
    return DataConfig(task="custom", path="rows", **fields)


def rows_of(splits):
    return {name: rows for name, rows in splits.items()}


@st.composite
def official_rows(draw):
    """Rows with many duplicate questions and groups, with and without official splits."""

    def rows(prefix, sizes):
        n = draw(st.integers(*sizes))
        return [
            example(
                f"{prefix}{i}",
                f"Question {draw(st.integers(0, 80))}",
                draw(st.none() | st.integers(0, 40).map(str)),
            )
            for i in range(n)
        ]

    return Official(
        rows("a", (10, 60)),
        draw(st.booleans()) and rows("b", (1, 20)) or None,
        draw(st.booleans()) and rows("c", (1, 20)) or None,
    )


@settings(max_examples=50, deadline=None)
@given(official_rows(), st.integers(0, 5), st.integers(1, 9))
def test_anchors_are_carved_from_train_alone_and_without_answers(official, seed, carve):
    sizes = config(split_seed=seed, calibration_rows=2)
    try:
        splits, plain = make_splits(official, sizes, carve), make_splits(official, sizes)
    except UserError:
        return
    assert 0 < len(splits.anchor) <= carve
    train = {row.id: row for row in plain.train}
    assert {row.id for row in (*splits.train, *splits.anchor)} == train.keys()
    assert all(row == unlabelled(train[row.id]) for row in splits.anchor)
    kept, before = rows_of(splits), rows_of(plain)
    assert all(kept[name] == before[name] for name in kept if name != "train")
    require_apart(splits.anchor, kept, "anchor")


def test_anchors_that_share_a_question_group_or_person_are_refused():
    rows = {"test": [example("t", "Where was Ada Nork born?", group="Ada Nork")]}
    for anchor, people in (
        (example("a", "Where  was Ada Nork born?"), False),
        (example("a", "What else?", group="Ada Nork"), False),
        (example("a", "What does Ada Nork play?"), True),
    ):
        with pytest.raises(UserError, match="1 of 1 questions share question, group or person"):
            require_apart([anchor], rows, "anchor", people)
    # Groups of stored rows are no names.
    require_apart([example("a", "What does Ada Nork play?")], rows, "anchor")
    require_apart([example("a", "What does Ada Lind play?")], rows, "anchor", True)


@settings(max_examples=150, deadline=None)
@given(official_rows(), st.integers(0, 5), st.none() | st.integers(2, 8), st.none() | st.just(5))
def test_splits_share_no_row_question_or_group(official, seed, calibration, train_rows):
    sizes = config(split_seed=seed, calibration_rows=calibration, train_rows=train_rows)
    try:
        splits = make_splits(official, sizes)
    except UserError:
        return
    where: dict = {}
    for name, rows in splits.items():
        assert rows
        for row in rows:
            group = [] if row.group is None else [("group", row.group)]
            for key in [row.id, question_key(row), *group]:
                assert where.setdefault(key, name) == name, (key, where[key], name)
    if official.test is not None:
        assert splits.test == tuple(official.test)
    if calibration is not None:
        assert len(splits.calibration) <= calibration
    if train_rows is not None:
        assert len(splits.style) + len(splits.train) <= train_rows
    assert rows_of(make_splits(official, sizes)) == rows_of(splits)


@settings(max_examples=50, deadline=None)
@given(official_rows(), st.integers(0, 5))
def test_groups_of_own_files_stay_and_carved_parts_keep_them_whole(official, seed):
    """Only equal questions leave an earlier file; what we carve never cuts a group."""
    try:
        splits = make_splits(official, own(split_seed=seed))
    except UserError:
        return
    given_files = {name for name in ("validation", "test") if getattr(official, name) is not None}
    where: dict = {}
    for name, rows in splits.items():
        for row in rows:
            carved = name not in given_files and row.group is not None
            group = [("group", row.group)] if carved else []
            for key in [row.id, question_key(row), *group]:
                assert where.setdefault(key, name) == name, (key, where[key], name)
    later = {
        question_key(row)
        for file in (official.validation or [], official.test or [])
        for row in file
    }
    left = [row for row in official.train if question_key(row) not in later]
    used = [row for name, rows in splits.items() if name not in given_files for row in rows]
    assert sorted(row.id for row in used) == sorted(row.id for row in left)


def plain(n, prefix="a"):
    return [example(f"{prefix}{i}", f"{prefix} question {i}") for i in range(n)]


def test_sizes_follow_the_config_and_every_row_is_used():
    splits = make_splits(
        Official(plain(1000), None, plain(50, "t")),
        config(calibration_rows=100, validation_rows=200, style_fraction=0.2),
    )
    sizes = {name: len(rows) for name, rows in splits.items()}
    assert sizes == {
        "style": 140,
        "train": 560,
        "calibration": 100,
        "validation": 200,
        "test": 50,
    }
    assert splits.notes == ()


def test_a_small_training_set_gives_only_a_share_away():
    splits = make_splits(Official(plain(100), None, plain(5, "t")), config())
    assert (len(splits.calibration), len(splits.validation)) == (15, 15)


def test_the_default_calibration_split_has_at_most_500_rows():
    splits = make_splits(Official(plain(6000), plain(5, "v"), plain(5, "t")), config())
    assert (len(splits.calibration), len(splits.validation)) == (500, 5)


def test_the_seed_moves_rows_and_a_limit_on_one_split_leaves_the_others_alone():
    official = Official(plain(100), plain(20, "v"), plain(20, "t"))
    base = make_splits(official, config())
    assert make_splits(official, config(split_seed=1)).train != base.train
    limited = make_splits(official, config(test_rows=5, validation_rows=6))
    assert (limited.style, limited.train, limited.calibration) == (
        base.style,
        base.train,
        base.calibration,
    )
    assert (len(limited.test), len(limited.validation)) == (5, 6)
    assert set(e.id for e in limited.test) < set(e.id for e in base.test)


def test_rows_that_repeat_a_test_question_leave_train_and_validation_and_are_counted():
    train = [*plain(30), example("copy", " t  question 1 ", choices=("no", "yes"))]
    validation = [*plain(5, "v"), example("copy2", "t question 2")]
    splits = make_splits(Official(train, validation, plain(5, "t")), config())
    ids = {row.id for name, rows in splits.items() if name != "test" for row in rows}
    assert not ids & {"copy", "copy2"}
    assert len(splits.test) == 5
    assert [note.split(" rows")[0] for note in splits.notes] == [
        "train: 1 of 31",
        "validation: 1 of 6",
    ]


def open_question(name, question, *answers, passage=""):
    return Example(
        id=name,
        question=question,
        choices=answers[:1],
        answer=0,
        passage=passage,
        aliases=answers,
    )


def test_an_open_question_with_another_reference_is_the_same_question():
    train = [open_question(f"a{i}", f"what is {i}", f"thing {i}") for i in range(30)]
    train.append(open_question("copy", "Who wrote  it?", "A. Lund"))
    test = [open_question("t", "who wrote it?", "Ada Lund", "A. Lund")]
    splits = make_splits(Official(train, None, test), config())
    assert all(row.id != "copy" for name, rows in splits.items() for row in rows)
    assert "train: 1 of 31" in splits.notes[0]
    # About another passage it is another question, and with options to choose from as well.
    other = open_question("p", "who wrote it?", "A. Lund", passage="A letter.")
    assert question_key(other) != question_key(test[0])
    closed = example("c", "who wrote it?", choices=("A. Lund", "B. Lund"))
    assert question_key(closed) != question_key(test[0])


def test_a_test_question_bars_its_training_twin_even_where_the_limit_drops_it():
    train = [*plain(30), example("copy", "t question 1")]
    official = Official(train, None, plain(2, "t"))
    for seed in range(4):
        splits = make_splits(official, config(test_rows=1, split_seed=seed))
        assert all(row.id != "copy" for name, rows in splits.items() for row in rows)


def test_leakage_runs_through_chains_of_questions_and_groups():
    """a (train) has the group of b (train), which asks what c (test) asks."""
    train = [*plain(30), example("a", "first", "g"), example("b", "second", "g")]
    splits = make_splits(Official(train, None, [example("c", "second")]), config())
    assert all(row.id not in "ab" for row in splits.train + splits.style + splits.calibration)


def test_too_few_rows_name_the_numbers():
    with pytest.raises(UserError, match="6 training rows are too few for 5 calibration"):
        make_splits(Official(plain(6), plain(2, "v"), plain(2, "t")), config(calibration_rows=5))
    with pytest.raises(UserError, match="3 .* 1 test, 1 validation, 1 cal.*; give more rows$"):
        make_splits(Official(plain(3), None, None), config())
    with pytest.raises(UserError, match="0 training rows are too few"):
        make_splits(Official(plain(3, "t"), plain(2, "v"), plain(3, "t")), config())
    with pytest.raises(UserError, match="all validation rows repeat"):
        make_splits(Official(plain(30), plain(2, "t"), plain(3, "t")), config())


def test_one_large_group_that_cannot_be_dealt_is_an_error():
    train = [example(f"a{i}", f"question {i}", "all") for i in range(50)]
    with pytest.raises(UserError, match="in 1 groups"):
        make_splits(Official(train, plain(2, "v"), plain(2, "t")), config())


E_ACUTE = "caf\u00e9"


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("Is it 5?", " Is\u00a0it \n5? ", True),
        (E_ACUTE, unicodedata.normalize("NFD", E_ACUTE), True),
        ("100 \u2126", "100 \u03a9", True),  # the sign of the unit is the Greek letter
        ("What is 5\u00b2?", "What is 52?", False),
        ("H\u2082O", "H2O", False),
        ("\u00bd cup", "1\u20442 cup", False),
        ("\ufb01n", "fin", False),
        ("\uff15", "5", False),
        ("5 mW", "5 MW", False),
    ],
)
def test_questions_and_choices_are_equal_where_a_reader_sees_the_same(first, second, equal):
    rows = [example("a", first), example("b", second)]
    assert (question_key(rows[0]) == question_key(rows[1])) == equal
    rows = [example("a", "?", choices=("x", first)), example("b", "?", choices=(second, "x"))]
    assert (question_key(rows[0]) == question_key(rows[1])) == equal
    assert question_clusters([*rows, rows[0]]).tolist() == ([0, 0, 0] if equal else [0, 1, 0])


def test_superscripts_make_other_questions_and_no_row_is_left_out():
    powers = [example(f"p{i}", f"What is {i}" + ("\u00b2" if i % 2 else "2")) for i in range(40)]
    flat = [example(f"f{i}", f"What is {i}2") for i in range(1, 40, 2)]
    splits = make_splits(Official(powers, None, flat), own())
    assert sum(len(rows) for _, rows in splits.items()) == 60
    assert splits.notes == ()


def test_a_question_in_other_case_is_a_leak_only_with_the_same_answer():
    train = [
        *plain(30),
        example("shout", "T QUESTION 1", choices=("Yes", "no")),
        Example("unit", "Is 5 MW more than 5 kW?", ("yes", "no"), 0),
    ]
    test = [*plain(3, "t"), Example("t9", "Is 5 mW more than 5 kW?", ("yes", "no"), 1)]
    splits = make_splits(Official(train, None, test), own())
    ids = {row.id for _, rows in splits.items() for row in rows}
    assert "shout" not in ids and "unit" in ids


def in_groups(n, prefix, groups):
    return [example(f"{prefix}{i}", f"{prefix} {i}?", f"topic{i % groups}") for i in range(n)]


def test_files_that_share_every_group_are_used_as_they_are_and_a_note_says_so():
    official = Official(in_groups(40, "a", 8), None, in_groups(12, "t", 8))
    splits = make_splits(official, own())
    assert len(splits.test) == 12
    assert sum(len(rows) for name, rows in splits.items() if name != "test") == 40
    (note,) = [note for note in splits.notes if "--data.shared-groups drop" in note]
    assert note.startswith("group: 8 groups stand in more than one of your files")
    assert "40 of 40 rows of train, 12 of 12 rows of test" in note


def test_rows_of_shared_groups_are_left_out_on_request():
    train = [*in_groups(40, "a", 8), *plain(20)]
    test = in_groups(3, "t", 8)
    dropped = make_splits(Official(train, None, test), own(shared_groups="drop"))
    left = {row.group for name, rows in dropped.items() if name != "test" for row in rows}
    assert left.isdisjoint({"topic0", "topic1", "topic2"})
    assert sum(len(rows) for name, rows in dropped.items() if name != "test") == 45
    with pytest.raises(UserError, match=r"too few .* 40 of 40 rows left out, .*groups keep"):
        make_splits(Official(in_groups(40, "a", 3), None, test), own(shared_groups="drop"))


def test_groups_that_a_published_task_finds_still_bar_its_training_rows():
    official = Official([*in_groups(6, "a", 3), *plain(30)], None, in_groups(3, "t", 3))
    splits = make_splits(official, DataConfig(task="winogrande_s"))
    assert all(row.group is None for name, rows in splits.items() if name != "test" for row in rows)


def test_repeats_within_the_test_split_are_counted_in_a_note():
    test = [*plain(4, "t"), *(example(f"r{i}", "t  question 1") for i in range(2))]
    splits = make_splits(Official(plain(30), None, test), own())
    assert splits.notes[-1].startswith("test: 6 rows, 4 different questions")


def test_few_large_groups_are_dealt_whole_one_to_a_split():
    official = Official(in_groups(40, "a", 4), None, in_groups(12, "t", 4))
    splits = make_splits(official, own())
    assert [len(rows) for _, rows in splits.items()] == [10, 10, 10, 10, 12]
    assert "calibration: 10 rows instead of 6, since groups are kept whole" in splits.notes
    # A size that was asked for is a limit.
    with pytest.raises(UserError, match="no row is left for calibration: .* the smallest of 10"):
        make_splits(official, own(calibration_rows=6))
