"""Files of rows: the same rows from every format, or one line that says what is wrong."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from cogcalib_jax.data.example import BadRow
from cogcalib_jax.data.formats import FORMATS, format_of, read_file, stem_of
from cogcalib_jax.errors import UserError

# Texts that other readers of tables turn into numbers, dates or nothing, or cut.
HARD = ["007", "1.0", "1e3", "NA", "null", "TRUE", "2024-01-02", 'say "hi"', "a,b;c\td", "one\ntwo"]
ROWS = [{"question": text, "answer": f"{text}?"} for text in HARD] + [
    {"question": "Größe 5²", "answer": " "},
]


def delimited(rows, separator):
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
    return "\r\n".join(separator.join(row) for row in quoted) + "\r\n"


WRITTEN = {
    ".jsonl": "\n".join(map(json.dumps, ROWS)),
    ".ndjson": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    ".json": json.dumps(ROWS, indent=1, ensure_ascii=False),
    ".csv": delimited(ROWS, ","),
    ".tsv": delimited(ROWS, "\t"),
}


def contents(file):
    return [row.content for row in read_file(file).rows]


def test_every_format_is_covered():
    assert set(WRITTEN) | {".parquet"} == set(FORMATS)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_text_format_gives_the_same_rows(tmp_path, suffix, zipped, bom):
    data = bom + WRITTEN[suffix].encode()
    file = tmp_path / (f"x{suffix.upper()}" + (".gz" if zipped else ""))
    file.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    expected = [dict(row) for row in ROWS]
    if suffix in (".csv", ".tsv"):
        expected[-1]["answer"] = None  # an empty cell, as far as a reader sees
    assert contents(file) == expected
    assert (format_of(file), stem_of(file)) == (suffix, "x")


def test_parquet_gives_the_same_rows_by_their_number(tmp_path):
    file = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    assert contents(file) == ROWS
    assert read_file(file).rows[1].where == f"{file} row 2"


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("x.jsonl", '{"q": 1}\n\n{"q": 2}\n', [1, 3]),
        ("x.json", '{"q":\n 1}\n', [1]),
        ("x.csv", 'q,a\n1,"two\nlines"\n\n,\n2,x\n', [2, 6]),
        ("x.csv", "q,a\r1,x\r2,y", [2, 3]),
    ],
)
def test_a_row_says_on_which_line_it_begins(tmp_path, name, text, places):
    file = tmp_path / name
    file.write_text(text, newline="")
    rows = read_file(file).rows
    assert [row.where for row in rows] == [f"{file}:{line}" for line in places]
    assert [row.number for row in rows] == places


def test_objects_of_an_array_are_numbered(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('[\n {"q": 1}, {"q":\n 2}]\n')
    assert [row[:2] for row in read_file(file).rows] == [(f"{file} row {n}", n) for n in (1, 2)]


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("x.csv", "q;A;B\n1,5;2;3\n", "columns of x.csv separated by semicolons"),
        ("x.csv", "q\tA\tB\n1\t2\t3\n", "columns of x.csv separated by tabs"),
        ("x.tsv", "q,A,B\n1,2,3\n", "columns of x.tsv separated by commas"),
        ("x.csv", "q,A,B\n1,2,3\n", ""),
        ("x.tsv", "q\tA\tB\n1\t2\t3\n", ""),
        ("x.csv", '"a, or b";A;B\n1;2;3\n', "columns of x.csv separated by semicolons"),
    ],
)
def test_the_header_tells_the_separator(tmp_path, name, text, note):
    file = tmp_path / name
    file.write_text(text)
    read = read_file(file)
    assert (len(read.rows[0].content), read.note) == (3, note)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.xlsx", b"", "is not a file of rows; expected .jsonl, .*.parquet"),
        ("x.parquet.gz", b"", "is not a file of rows"),
        ("x.csv", "q,a\nGr\xf6\xdfe,1\n".encode("latin-1"), r"x.csv:2: is not UTF-8 text"),
        ("x.csv", "q,a\n1,2\n".encode("utf-16"), "is UTF-16 or UTF-32 text.*Save it as UTF-8"),
        ("x.jsonl", '{"q": 1}'.encode("utf-16"), "is UTF-16"),
        ("x.csv", "q,a\n1,2\n".encode("utf-16-le"), "holds NUL"),
        ("x.csv", b"question\nWho?\n", "header 'question' has one column"),
        ("x.csv", b"q|a\nWho?|x\n", "has one column; expected several"),
        ("x.csv", b"a,b;c\n1,2;3\n", "separated by commas or semicolons; expected one"),
        ("x.csv", b"q,a,q\n1,2,3\n", "column 'q' occurs twice"),
        ("x.csv", b'q,a\n1,x\n"2,y\n3,z\n', r"x.csv:3: is not a row of a table.*quotation"),
        ("x.csv", b'q,a\n"x" y,1\n', r"x.csv:2: is not a row of a table"),
        ("x.csv.gz", b"no gzip", "not a complete gzip file"),
        (
            "x.csv.gz",
            gzip.compress(b"q,a\n1,2\n" * 99, mtime=0)[:-9],
            "not a complete gzip file",
        ),
        ("x.json", b'[{"q": 1}, {"q": ', "is not a JSON array of objects"),
        ("x.json", b'[{"q": 1} {"q": 2}]', "is not a JSON array of objects"),
        ("x.json", b'[{"q": 1}] [', "is not a JSON array of objects"),
        ("x.json", b"[" * 100_000, "is not a JSON array of objects"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, data, message):
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_file(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.csv", "q,a\n1\n", "has 1 cells; the header has 2"),
        ("x.csv", "q,a\n1,2,3\n", "has 3 cells; the header has 2"),
        ("x.json", '[{"q": 1}, 3]', "must be a JSON object, is a int"),
        ("x.json", '{"q": 1}\n{"q"', "is not JSON"),
        ("x.jsonl", '{"q": 1}\n{"a": 0, "q": 1, "a": 1}', "'a' occurs twice in an object"),
    ],
)
def test_one_bad_row_is_a_bad_row(tmp_path, name, text, reason):
    file = tmp_path / name
    file.write_text(text)
    content = contents(file)[-1]
    assert isinstance(content, BadRow)
    assert reason in str(content)


def test_trailing_separators_and_columns_without_a_name_do_no_harm(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text(",q,a,\n0,Who?,Ada,,\n")
    assert contents(file) == [{"column 1": "0", "q": "Who?", "a": "Ada", "column 4": None}]


def test_a_space_may_stand_before_a_quotation_mark(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text('q, A, B\n"Who?", "Ada, or", "Bo ""B"""\n')
    assert contents(file) == [{"q": "Who?", "A": "Ada, or", "B": 'Bo "B"'}]


def test_a_cell_may_be_a_long_passage(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("q,a\n" + "word " * 100_000 + ",1\n")
    assert len(contents(file)[0]["q"]) == 500_000


@pytest.mark.parametrize("declared", ["sep=;\n", '"sep=;"\r\n', "SEP=;\r\n"])
def test_a_table_may_declare_its_separator_as_excel_does(tmp_path, declared):
    (tmp_path / "x.csv").write_text("\ufeff" + declared + "question;A,B;answer\nq;1;2\n")
    (row,) = read_file(tmp_path / "x.csv").rows
    assert row.content == {"question": "q", "A,B": "1", "answer": "2"}
    assert row.where.endswith("x.csv:3")
