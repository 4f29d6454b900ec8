"""Every accepted shape of a row is read as what it means, and stands in docs/tasks.md."""

import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.loading import load_test
from cogcalib_jax.data.task import load_questions
from tests.data.shapes import SHAPES, YES_NO, Shape, documented, tables


def write(folder, shape: Shape):
    content = shape.content if isinstance(shape.content, bytes) else shape.content.encode()
    file = folder / shape.name
    file.write_bytes(content)
    return file


def load(folder, shape: Shape):
    config = DataConfig(task="custom", path=str(write(folder, shape)), **shape.options)
    return load_test(config, seed=0)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.kind}: {shape.what}")
def test_a_shape_is_read_as_what_it_means(tmp_path, shape):
    found = [
        (row.question, row.aliases if row.is_open else row.choices, row.answer)
        for row in load(tmp_path, shape)
    ]
    assert tuple(found) == shape.expected


@pytest.mark.parametrize("shape", YES_NO, ids=lambda shape: shape.what)
def test_true_and_false_name_a_choice(tmp_path, shape):
    assert [row.answer for row in load(tmp_path, shape)] == [0, 1]


@pytest.mark.parametrize(
    "shape",
    [shape for shape in SHAPES if shape.kind == "Choices"],
    ids=lambda shape: shape.what,
)
def test_questions_to_answer_have_the_same_shapes(tmp_path, shape):
    columns = DataConfig(task="custom", path="x", **shape.options).column_names()
    asked, _ = load_questions(write(tmp_path, shape), columns)
    assert [(q.example.question, q.example.choices) for q in asked] == [
        (question, choices) for question, choices, _ in shape.expected
    ]


def test_the_document_has_every_shape():
    # python -m tests.data.shapes writes them.
    assert documented() == tables()
