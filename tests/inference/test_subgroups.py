"""Calibration by subgroup: the numbers of each part, and fields that there are not."""

import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.evaluate import (
    DRAWS_PER_GROUP,
    fields_of,
    question_fields,
    require_fields,
    subgroups,
)
from tests.inference.encoded_rows import encoded_rows

CONFIG = EvaluationConfig(resamples=100)
ROWS = [
    {"subject": "law", "year": 10, "odd": True, "tags": ["a"]},
    {"subject": "art", "year": 9, "odd": False, "tags": ["b"]},
    {"subject": "law", "year": 9, "odd": True, "tags": []},
    {"subject": None, "year": 10, "odd": False},
]
NO_VALUE = [
    {"group": "none"},
    {"group": None},
    {},
    {"group": "(null)"},
    {"group": "(absent)"},
    {"group": ""},
    {"group": '"(null)"'},
    {"group": "null"},
    {"group": float("nan")},
]


def indices(config, chosen):
    return {"rows": chosen.tolist(), "draws": config.resamples}


def test_every_value_gets_the_numbers_of_its_rows_in_order():
    found = subgroups(["subject", "year", "odd"], ROWS, CONFIG, indices)
    rows = {field: {v: m["rows"] for v, m in groups.items()} for field, groups in found.items()}
    assert rows == {
        "subject": {"art": [1], "law": [0, 2], "(null)": [3]},
        "year": {"9": [1, 2], "10": [0, 3]},
        "odd": {"false": [1, 3], "true": [0, 2]},
    }
    assert list(rows["year"]) == ["9", "10"]  # in order of the numbers


def test_a_value_of_thousands_of_digits_is_a_text():
    rows = [{"n": "art"}, {"n": "9" * 5000}, {"n": "10"}, {"n": "-9"}]
    assert list(subgroups(["n"], rows, CONFIG, indices)["n"]) == ["-9", "10", "9" * 5000, "art"]


def test_a_text_null_and_an_absent_field_are_three_things_whatever_the_text():
    found = subgroups(["group"], NO_VALUE, CONFIG, indices)["group"]
    assert {name: m["rows"] for name, m in found.items()} == {
        "none": [0],
        "(null)": [1, 8],
        "(absent)": [2],
        '"(null)"': [3],
        '"(absent)"': [4],
        '""': [5],
        '"\\"(null)\\""': [6],
        "null": [7],
    }
    assert list(found)[-2:] == ["(absent)", "(null)"]


def test_whole_numbers_are_one_kind_whether_stored_as_floats_or_not():
    rows = [{"year": 9.0}, {"year": 9}, {"year": -1.0}, {"year": None}]
    assert list(subgroups(["year"], rows, CONFIG, indices)["year"]) == ["-1", "9", "(null)"]


def test_draws_suffice_for_a_correction_over_all_groups():
    many = [{"n": i % 50} for i in range(100)]
    draws = {m["draws"] for m in subgroups(["n"], many, CONFIG, indices)["n"].values()}
    assert draws == {50 * DRAWS_PER_GROUP}
    assert 50 / (1 + 50 * DRAWS_PER_GROUP) <= 0.05
    few = subgroups(["odd"], ROWS, CONFIG, indices)["odd"]
    assert {m["draws"] for m in few.values()} == {CONFIG.resamples}


def test_only_fields_of_plain_values_group_rows():
    assert fields_of(ROWS) == ["subject", "year", "odd"]
    assert fields_of([{"x": None}, {"y": 1.5}]) == []


def test_a_field_is_left_out_of_a_task_without_it():
    assert subgroups(["subject"], [{"year": 1}], CONFIG, indices) == {}
    require_fields(["subject"], {"a": ROWS, "b": [{"year": 1}]})


def test_an_unknown_field_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"by = topic: .* \(there are: subject, year, odd\)"):
        require_fields(["topic"], {"a": ROWS})
    with pytest.raises(UserError, match="none, because a has no such fields"):
        require_fields(["topic"], {"a": [{}]})


def test_a_field_that_names_rows_is_refused():
    with pytest.raises(UserError, match="by = id: has 400 different values in a"):
        require_fields(["id"], {"a": [{"id": str(i)} for i in range(400)]})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            [i / 7 for i in range(1, 500)],
            r"holds numbers with decimals in a \(499 different values, such as 0.14.*\); expected"
            r" texts, whole numbers, .* at most 300 .* field with the range",
        ),
        ([0.5, 0.5], "holds numbers with decimals in a .1 different"),
        ([float("inf"), 1], "holds numbers with decimals"),
        ([1, [2]], "holds lists in a; expected texts, whole numbers"),
        ([{"x": 1}], "holds objects in a"),
        ([float(i) for i in range(301)], "has 301 different values in a, so it names rows"),
        (["short", "x" * 2000], "has texts of up to 2,000 characters in a; .* at most 100"),
    ],
)
def test_a_field_that_cannot_group_is_refused_with_those_that_can(values, reason):
    rows = [{"f": value, "lang": "de", "all": i} for i, value in enumerate(values * 301)]
    with pytest.raises(UserError, match=reason) as caught:
        require_fields(["f"], {"a": rows, "b": [{"lang": "en"}]})
    assert str(caught.value).startswith("by = f: ")
    assert str(caught.value).endswith("; or choose another field (there are: lang)")


def test_questions_are_grouped_by_group_and_extra():
    first, second = encoded_rows(
        [{"extra": {"subject": "law"}, "group": "g"}, {"extra": {"subject": "art"}, "group": None}]
    )
    assert question_fields([first, second]) == [
        {"group": "g", "subject": "law"},
        {"subject": "art"},
    ]
    assert np.array_equal(fields_of(question_fields([first, second])), ["group", "subject"])
