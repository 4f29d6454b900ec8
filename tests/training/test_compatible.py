"""What cannot be trained together is refused in words, from values in memory alone."""

from dataclasses import dataclass, replace

import pytest

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.method.config import LossConfig, parse_entry
from cogcalib_jax.method.terms import Term, register_term
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training.compatible import check_compatible, check_mesh
from cogcalib_jax.training.config import CompositionConfig, TrainingConfig
from tests.inference.tiny import questions


@register_term("batch_mean", label="Test term")
@dataclass(frozen=True)
class BatchMean(Term):
    """One number from all rows, which needs no class to mean the same in each."""

    per = "batch"


ROW_LOSS = LossConfig()
LETTERS = questions(6, options=(4,))
SEVERAL = questions(6, tokens=3)


def one_list(rows):
    """The same options for every question, as letters are."""
    return EncodedSplit(replace(row, completion_ids=((3,), (4,), (5,), (6,))) for row in rows)


def without_knowledge(rows, **extra):
    return EncodedSplit(replace(row, example=replace(row.example, extra=extra)) for row in rows)


def open_questions(rows):
    return EncodedSplit(
        replace(
            row,
            completion_ids=row.completion_ids[:1],
            answer=0,
            example=replace(row.example, choices=("a",), answer=0, aliases=("a",)),
        )
        for row in rows
    )


def checked(train, *entries, space="vocab", loss=ROW_LOSS, **more):
    """Notes of `check_compatible`; entries: methods, each with classes in `space`."""
    methods = [replace(parse_entry(entry), space=space).resolve() for entry in entries or ("sft",)]
    return check_compatible({"train": train}, methods, loss, data_name="mine", **more)


def options_loss():
    return LossConfig(space="options")


OPEN = open_questions(LETTERS)
FITS = {
    "loss over options of several tokens": lambda: checked(SEVERAL, loss=options_loss()),
    "term over options of several tokens": lambda: checked(SEVERAL, "sft", "ls", space="options"),
    "Laplace of several tokens": lambda: checked(
        LETTERS, averaged=("laplace_lora",), sets={"more": SEVERAL}
    ),
    "options of one token": lambda: checked(LETTERS, "ls", space="options", loss=options_loss()),
    "batch term over options": lambda: checked(LETTERS, "batch_mean", space="options"),
    "classes that all questions share": lambda: checked(one_list(LETTERS), "mdca", space="options"),
    "oracle where rows say": lambda: checked(LETTERS, "ls@oracle"),
    "another gate where they do not": lambda: checked(without_knowledge(LETTERS), "cols"),
    "exact match of open questions": lambda: checked(OPEN, loss=LossConfig(correct="exact_match")),
    "other averages of several tokens": lambda: checked(SEVERAL, averaged=("mc_dropout",)),
    "Laplace of one token": lambda: checked(LETTERS, averaged=("laplace_lora",)),
    "a chosen rule": lambda: checked(SEVERAL, option_score="auto"),
    "questions of one kind": lambda: checked(OPEN, sets={"mine": OPEN, "nq_open": OPEN}),
    "shares by the start": lambda: checked(
        without_knowledge(LETTERS), composition=CompositionConfig(0.5, by="start")
    ),
    "answers with room": lambda: checked(OPEN, context=40, new_tokens=20),
}
REFUSED = {
    "pmi over options of several tokens": (
        lambda: checked(SEVERAL, "sft", "ls", space="options", option_score="pmi"),
        "option_score is pmi; expected mean, sum or chars for method.space = options",
    ),
    "pmi over options of one token": (
        lambda: checked(LETTERS, loss=options_loss(), option_score="pmi"),
        "option_score is pmi; expected mean, sum or chars for loss.space = options",
    ),
    "options space of open questions": (
        lambda: checked(OPEN, loss=options_loss()),
        "loss.space = options: questions of mine are open .* use vocab",
    ),
    "batch term over the vocabulary": (
        lambda: checked(LETTERS, "sft", "batch_mean"),
        "method.space is vocab; expected options for term batch_mean.* Set --method.space options",
    ),
    "term over classes in the vocabulary": (
        lambda: checked(one_list(LETTERS), "mdca"),
        "method.space is vocab; expected options for term mdca",
    ),
    "classes that differ": (
        lambda: checked(LETTERS, "mdca", space="options"),
        "method.term is mdca; expected one list of options .* mine has 6 lists",
    ),
    "oracle where rows do not say": (
        lambda: checked(without_knowledge(LETTERS), "ls@oracle"),
        "method.gate = oracle: rows of mine do not say",
    ),
    "oracle where no row is known": (
        lambda: checked(without_knowledge(LETTERS, known=False), "ls@oracle"),
        "method.gate is oracle, and no row of mine is known; expected some",
    ),
    "shares by a world that is none": (
        lambda: checked(
            without_knowledge(LETTERS), composition=CompositionConfig("natural", by="world")
        ),
        "composition.by = world: these rows do not say",
    ),
    "exact match of options": (
        lambda: checked(LETTERS, loss=LossConfig(correct="exact_match")),
        "loss.correct = exact_match: questions of mine have options; use argmax",
    ),
    "averages of open questions": (
        lambda: checked(OPEN, averaged=("mc_dropout", "ensemble")),
        "compare = mc_dropout, ensemble: averages .* mine are open",
    ),
    "a chosen rule for open questions": (
        lambda: checked(OPEN, option_score="auto"),
        "option_score = auto: questions of mine are open",
    ),
    "open questions beside options": (
        lambda: checked(LETTERS, sets={"mine": LETTERS, "nq_open": OPEN}),
        "also = nq_open: only one of it and mine has open",
    ),
    "answers without room": (
        lambda: checked(OPEN, context=20, new_tokens=15),
        "exceed the model's context of 20; set --data.max-length to at most 5, .* or lower",
    ),
    "answers longer than the context": (
        lambda: checked(OPEN, context=20, new_tokens=30),
        "exceed the model's context of 20; lower --evaluation.open.max-new-tokens",
    ),
}


@pytest.mark.parametrize("what", FITS)
def test_what_fits_together_passes_without_notes(what):
    assert FITS[what]() == ()


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_is_refused(what):
    check, message = REFUSED[what]
    with pytest.raises(UserError, match=message):
        check()


def test_texts_beyond_the_context_get_a_note():
    longest = int(LETTERS.lengths.max())
    assert checked(LETTERS, context=longest) == ()
    (note,) = checked(LETTERS, context=longest - 1, new_tokens=100)
    assert note.startswith(f"texts of up to {longest} tokens are longer")


def test_batches_that_devices_cannot_share_evenly_are_refused():
    """The tests' eight devices: micro-batches of 4 cannot be spread over data = 8."""
    halves = TrainingConfig(batch_size=8, accumulation=2)
    with pytest.raises(UserError, match="= 4: cannot be spread over 8 devices"):
        check_mesh(make_mesh(MeshConfig()), halves, EvaluationConfig())
    check_mesh(make_mesh(MeshConfig(tensor=2)), halves, EvaluationConfig())
    with pytest.raises(UserError, match="evaluation.batch_size = 12: cannot be spread"):
        check_mesh(make_mesh(MeshConfig()), TrainingConfig(), EvaluationConfig(batch_size=12))
