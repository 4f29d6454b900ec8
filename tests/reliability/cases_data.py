"""Bad questions: to train on, to answer, and as predictions made elsewhere."""

import json
import os
from pathlib import Path

from tests.reliability.case import EVAL, Case
from tests.reliability.place import Place, question, questions, write


def custom(rows: object, *more: str):
    """train.py on a file of questions."""
    return lambda place: place.custom(rows, *more)


def splits(**files: object):
    """train.py on a folder of questions."""

    def arrange(place: Place) -> list[str]:
        for name, rows in files.items():
            write(Path("rows") / name.replace("_", "."), rows)
        return place.custom(None, path=Path("rows"))

    return arrange


def ask(rows: object):
    """eval.py --predict on a file of questions."""

    def arrange(place: Place) -> list[str]:
        file = write(Path("mine.jsonl"), rows)
        return ["--model.path", str(place.base()), "--predict", str(file), "--out", "answers.jsonl"]

    return arrange


def score(rows: object, *more: str):
    """eval.py --predictions of a file."""

    def arrange(place: Place) -> list[str]:
        file = write(Path("p.jsonl"), rows)
        return ["--predictions", str(file), "--run-dir", "new", *more]

    return arrange


def _shards(place: Place, *names: str) -> list[str]:
    for name in names:
        write(Path("rows") / name, questions())
    return place.custom(None, path=Path("rows"))


def _pipe(place: Place) -> list[str]:
    os.mkfifo("p.jsonl")
    return ["--predictions", "p.jsonl", "--run-dir", "new"]


def named(name: str):
    """eval.py --predictions of a file of that name."""

    def arrange(place: Place) -> list[str]:
        file = write(Path(name), [{"confidence": 0.7, "correct": True}])
        return ["--predictions", str(file), "--run-dir", "new"]

    return arrange


QUESTIONS = [
    Case("a file that is not there", lambda p: p.custom(None)),
    Case("an empty file", custom("")),
    Case("a file of another kind", lambda p: p.custom("a,b\n", path=Path("rows.xlsx"))),
    Case(
        "a table that is not UTF-8",
        lambda p: p.custom("question,A,B\ncafé,x,y\n".encode("latin-1"), path=Path("rows.csv")),
    ),
    Case(
        "a table with one column",
        lambda p: p.custom("question|A|B\nWhat?|x|y\n", path=Path("rows.csv")),
    ),
    Case(
        "a quotation mark that is not closed",
        lambda p: p.custom('question,A,B\n"What?,x,y\nWho?,x,y\n', path=Path("rows.csv")),
    ),
    Case("a gzip file that is none", lambda p: p.custom(b"rows", path=Path("rows.csv.gz"))),
    Case(
        "a shard that is missing",
        lambda p: _shards(p, "train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"),
    ),
    Case("validation rows in two files", lambda p: _shards(p, "val.jsonl", "dev.jsonl")),
    Case("indices that count from 1", custom([question(i, answer=1 + i % 2) for i in range(40)])),
    Case(
        "answers that are letters and texts at once",
        custom([question(i, choices=["B", "A"], answer="AB"[i % 2]) for i in range(40)]),
    ),
    Case(
        "answers in two ways", custom([question(i, answer=("Ada", "B")[i % 2]) for i in range(40)])
    ),
    Case("choices in two columns", custom(questions(options=["Bob", "Eve"]))),
    Case("answers in two columns that differ", custom(questions(answer=0, label=1))),
    Case(
        "choices in a column that is not read",
        custom(
            [{"question": f"Who {i}?", "names": ["Ada", "Bob"], "answer": "Ada"} for i in range(40)]
        ),
    ),
    Case(
        "letters without choices",
        custom([{"question": f"Who {i}?", "answer": "AB"[i % 2]} for i in range(40)]),
    ),
    Case(
        "columns named for a published task",
        lambda p: p.custom(questions(), "--data.task", "boolq", "--data.columns", "answer=x"),
    ),
    Case("a folder without a training split", splits(test_jsonl=questions())),
    Case("a split as JSONL and as Parquet", splits(train_jsonl=questions(), train_parquet=b"PAR1")),
    Case(
        "a Parquet file that is none",
        lambda p: p.custom(b"PAR1" + b"\0" * 64, path=Path("rows.parquet")),
    ),
    Case("other columns", custom([{"query": "x", "options": ["a", "b"], "label": 0}])),
    Case("a label out of range", custom(questions(answer=2))),
    Case("an answer that is no option", custom(questions(answer="three"))),
    Case("options with equal texts", custom(questions(choices=["Ada", "Ada "]))),
    Case("options that are one text", custom(questions(choices="Ada, Alan"))),
    Case("an option that is a number", custom(questions(choices=["Ada", 7]))),
    Case("an option of a megabyte", custom(questions(choices=["Ada", "word " * 200_000]))),
    Case("an answer that is not a number", custom(json.dumps(question(answer=float("nan"))))),
    Case("one option only", custom(questions(choices=["Ada"]))),
    Case("an id given twice", custom(questions(38) + [question(38, id="a"), question(39, id="a")])),
    Case("a question that is a number", custom(questions(question=7))),
    Case("a question that is empty", custom(questions(question=" "))),
    Case("a question of a megabyte", custom(questions(question="word " * 200_000))),
    Case("a question with a NUL", custom(questions(question="What\0is it?"))),
    Case(
        "a question that would clear the terminal",
        custom(questions(question="What \x1b[2J is it?")),
    ),
    Case(
        "a question that would clear it without an ESC",
        custom(questions(question="What \x9b2J is it?")),
    ),
    Case(
        "an id that would clear the terminal",
        custom(questions(question="word " * 999, id="\x1b[2J")),
    ),
    Case("a word for what the base knows", custom(questions(known="yes"))),
    Case("a row that is not UTF-8", custom(b'{"question": "caf\xe9"}\n')),
    Case("half a character (a lone surrogate)", custom(questions(question="\ud800"))),
    Case("a row cut off in the middle", custom(json.dumps(question())[:-20])),
    Case("a row that is an array", custom('["What?", "a", "b"]\n')),
    Case("a row nested 100,000 deep", custom("[" * 100_000)),
    Case("a number of 10,000 digits", custom('{"answer": ' + "1" * 10_000 + "}")),
    Case("open questions among those with options", custom(questions(choices=None))),
    Case(
        "open questions in one split alone",
        splits(
            train_jsonl=questions(), test_jsonl=[question(i, choices=None) for i in range(50, 55)]
        ),
    ),
    Case(
        "a split without labels",
        splits(
            train_jsonl=questions(), test_jsonl=[question(i, answer=None) for i in range(50, 55)]
        ),
    ),
    Case("too few rows to split", custom(questions(4))),
    Case("more solved questions than rows", custom(questions(30), "--data.few-shot", "99")),
    Case("a special token in a text", custom(questions(question="What <s> is it?"))),
    Case(
        "a question to answer without options", ask([question(), question(1, choices=None)]), EVAL
    ),
    Case(
        "two questions to answer with one id", ask([question(0, id="a"), question(1, id="a")]), EVAL
    ),
    Case("no question to answer", ask("\n\n"), EVAL),
    Case(
        "predictions that are not there",
        lambda p: ["--predictions", "p.jsonl", "--run-dir", "new"],
        EVAL,
    ),
    Case("predictions that are a pipe", _pipe, EVAL),
    Case("predictions with other fields", score([{"p": [0.5, 0.5], "label": 0}]), EVAL),
    Case(
        "probabilities that do not sum to 1",
        score([{"option_probs": [0.5, 0.9], "answer": 0}]),
        EVAL,
    ),
    Case(
        "a probability that is not a number",
        score('{"option_probs": [NaN, 0.5], "answer": 0}'),
        EVAL,
    ),
    Case("predictions under a name that results need", named("provenance.jsonl"), EVAL),
    Case("predictions under a name that leads elsewhere", named("...jsonl"), EVAL),
    Case("a confidence above 1", score([{"confidence": 70, "correct": True}]), EVAL),
    Case(
        "predictions of two kinds",
        score([{"confidence": 0.7, "correct": True}, {"option_probs": [0.5, 0.5], "answer": 0}]),
        EVAL,
    ),
    Case(
        "a logarithm as large as 10 to the 400",
        score('{"option_logprobs": [-1' + "0" * 400 + ', -1], "answer": 0}'),
        EVAL,
    ),
    Case(
        "a subgroup that no row names",
        score([{"confidence": 0.7, "correct": True}], "--by", "subject"),
        EVAL,
    ),
]
