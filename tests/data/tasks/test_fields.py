"""Columns that are not read arrive in the predictions as strict JSON."""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import BadRow
from cogcalib_jax.data.loading import load_test
from cogcalib_jax.data.tasks.fields import as_json
from cogcalib_jax.inference.predictions import write_rows
from tests.data.shapes import FIRST

DAY = datetime(2026, 3, 4, 5, 6, 7)
COLUMNS = {
    "date": (pa.array([date(2026, 3, 4)]), "2026-03-04"),
    "date64": (pa.array([date(2026, 3, 4)], pa.date64()), "2026-03-04"),
    "seconds": (pa.array([DAY], pa.timestamp("s")), "2026-03-04T05:06:07"),
    "zoned": (pa.array([DAY.replace(tzinfo=UTC)]), "2026-03-04T05:06:07+00:00"),
    "nanoseconds": (pa.array([1], pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    "time": (pa.array([time(5, 6, 7)]), "05:06:07"),
    "duration": (pa.array([timedelta(seconds=90.5)], pa.duration("ms")), "PT90.5S"),
    "duration_ns": (pa.array([1], pa.duration("ns")), "P0DT0H0M0.000000001S"),
    "decimal": (pa.array([Decimal("1.50")]), "1.50"),
    "large_decimal": (pa.array([Decimal("12345678901234567890.12")]), "12345678901234567890.12"),
    "uint64": (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
    "small": (pa.array([2**53]), 2**53),
    "large": (pa.array([2**53 + 1]), "9007199254740993"),
    "half": (pa.array([np.float16(0.5)]), 0.5),
    "nan": (pa.array([float("nan")]), None),
    "infinity": (pa.array([float("-inf")]), None),
    "null": (pa.nulls(1), None),
    "bytes": (pa.array([b"\x00\xff"]), "AP8="),
    "fixed": (pa.array([b"ab"], pa.binary(2)), "YWI="),
    "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
    "list": (pa.array([[1.5, float("nan"), None]]), [1.5, None, None]),
    "struct": (pa.array([{"at": DAY, "n": [Decimal("2")]}]), {"at": DAY.isoformat(), "n": ["2"]}),
    "map": (pa.array([[("k", 1.0)]], pa.map_(pa.string(), pa.float64())), {"k": 1.0}),
    "map_of_days": (
        pa.array([[(date(2026, 3, 4), 1)]], pa.map_(pa.date32(), pa.int8())),
        {"2026-03-04": 1},
    ),
    "text": (pa.array(["é"], pa.large_string()), "é"),
    "bool": (pa.array([True]), True),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_every_arrow_type_passes_through_as_json(tmp_path, name):
    column, expected = COLUMNS[name]
    row = pa.Table.from_pylist([FIRST])
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(row.append_column("fact", column), file, version="2.6")
    (example,), _ = load_test(DataConfig(task="custom", path=str(file)), 0)
    assert example.extra == {"fact": expected}
    assert json.loads(json.dumps(example.extra, allow_nan=False)) == example.extra


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([1, 2]), [1, 2]),
        (np.float32(0.5), 0.5),
        (np.int64(2**60), str(2**60)),
        ({1: float("inf")}, {"1": None}),
        ((True, {"a": (None,)}), [True, {"a": [None]}]),
        (Decimal("NaN"), None),
        (Decimal("1E+3"), "1000"),
        (timedelta(days=-1, microseconds=1), "PT-86399.999999S"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_values_of_python_become_json(value, expected):
    found = as_json(value)
    assert found == expected
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def test_a_value_without_a_form_in_json_is_refused_by_its_type():
    with pytest.raises(BadRow, match="type complex"):
        as_json({"x": [1j]})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_files_of_predictions_are_strict_json(tmp_path, number):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(FIRST | {"difficulty": [number]}) + "\n")
    (example,), _ = load_test(DataConfig(task="custom", path=str(rows)), 0)
    write_rows(tmp_path / "out.jsonl", [{"extra": example.extra}])
    assert (tmp_path / "out.jsonl").read_text() == '{"extra": {"difficulty": [null]}}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_rows(tmp_path / "other.jsonl", [{"nll": number}])
    assert not (tmp_path / "other.jsonl").exists()
