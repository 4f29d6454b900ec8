"""SliCK before training: which prompts, and what the model says to them, from its full logits."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Example
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig, OpenConfig
from cogcalib_jax.inference.open_ended import OpenPredictor
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.studies import detector as knownness
from cogcalib_jax.studies.detector import (
    SAMPLES,
    SHOTS,
    TEMPERATURE,
    SlickScorer,
    prompts_of,
    slick_categories,
    would_be_sampled,
)
from cogcalib_jax.studies.detector_results import UNKNOWN
from cogcalib_jax.world.config import RELATIONS, WorldConfig
from cogcalib_jax.world.corpus import build_tokenizer, build_world, wordings
from tests.inference.open_rows import DATA, NAMES, VOCAB, encoded, open_examples, tokenizer
from tests.inference.tiny import TINY, full_logits, log_softmax, tiny_decoder
from tests.models.small import one_device

EVALUATION = EvaluationConfig(
    batch_size=8, open=OpenConfig(max_new_tokens=3, samples=0, p_true=False)
)
SMALL = WorldConfig(entities=20, train=16, test=8, validation=8, calibration=8, style=8)


def run(data, tokenizer, decoder, style=(), answers=None, seed=0):
    """As much of a run as categories need."""
    model = split_model(decoder)
    return SimpleNamespace(
        config=SimpleNamespace(data=data, evaluation=EVALUATION, seed=seed),
        tokenizer=tokenizer,
        trainer=SimpleNamespace(splits={"style": style}, answers=answers),
        assembled=SimpleNamespace(
            model=model[0], mesh=one_device(), decoder=decoder, lora=model[1]
        ),
    )


@cache
def world_run():
    words = build_tokenizer(SMALL)
    config = replace(TINY, vocab_size=words.get_vocab_size())
    loaded = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    return run(DataConfig(task="world"), loaded, tiny_decoder(config=config))


def world_rows():
    made = world_run()
    examples = build_world(SMALL, 0).splits.train
    return encode_split("train", examples, made.tokenizer, made.config.data)[0]


def test_a_fact_of_the_world_is_asked_in_every_text_its_corpus_may_hold():
    """Completed with the value, each wording is a question of the corpus or a statement in it."""
    world = build_world(replace(SMALL, exposures=(40,), exposure_probabilities=(1.0,)), 0)
    stated = set(world.corpus)
    for example in world.splits.train:
        value = example.choices[example.answer]
        texts = [f"{one.question} {value}" for one in wordings(example)]
        assert len(set(texts)) == 2 + len(RELATIONS[example.extra["relation"]].statements)
        assert texts[0] == f"{example.question} {value}"
        assert set(texts[2:]) <= stated
        assert all(one.answer == example.answer for one in wordings(example))


def test_of_questions_with_options_everything_is_exact():
    rows, made = world_rows(), world_run()
    got = SlickScorer(made)(made.assembled.lora, rows)
    for i, row in list(enumerate(rows))[::5]:
        for j, asked in enumerate(prompts_of(made, rows)):
            logits = full_logits(made.assembled.decoder, asked[i].prompt_ids)[-1]
            answer = asked[i].completion_ids[row.answer][0]
            assert got.greedy[i, j] == (logits.argmax() == answer)
            wanted = np.exp(log_softmax(logits / TEMPERATURE))[answer]
            assert got.sampled[i, j] == pytest.approx(wanted, rel=1e-3)
    none = np.prod((1 - got.sampled) ** SAMPLES, 1)
    assert ((got.category == UNKNOWN) == (~got.greedy.any(1) & (none > 0.5))).all()
    assert len(set(got.category)) > 1


@cache
def open_run(style_rows=12, seed=0):
    config = replace(TINY, vocab_size=VOCAB, max_position_embeddings=256)
    decoder = tiny_decoder(config=config)
    split = split_model(decoder)[0]
    scores = Predictor(split, one_device(), EVALUATION)
    answers = OpenPredictor(split, EVALUATION, DATA, tokenizer(), scores)
    style = encoded(open_examples(style_rows, seed=5))
    return run(DATA, tokenizer(), decoder, style, answers, seed)


def open_rows():
    """Questions that the style split does not hold."""
    examples = open_examples(3, seed=9)
    return encoded(
        [replace(e, question=f"{NAMES[i]} {e.question}") for i, e in enumerate(examples)]
    )


def test_other_tasks_show_solved_questions_of_the_style_split_and_new_ones_each_time():
    made = open_run()
    style = {row.example.question: row.example.aliases[0] for row in made.trainer.splits["style"]}
    seen = []
    for asked in prompts_of(made, open_rows()):
        blocks = asked[0].prompt.split("\n\n")
        solved = [b.removeprefix("Question: ").split("\nAnswer: ") for b in blocks[:-1]]
        assert len(solved) == SHOTS and all(style[q] == a for q, a in solved)
        assert blocks[-1] == open_rows()[0].prompt
        seen.append(tuple(question for question, _ in solved))
    assert len(set(seen)) == knownness.PROMPTS


@pytest.mark.slow
def test_open_questions_are_answered_and_matched(monkeypatch):
    monkeypatch.setattr(knownness, "PROMPTS", 2)
    made, rows = open_run(), open_rows()
    lora, answers = made.assembled.lora, made.trainer.answers
    first = next(prompts_of(made, rows))
    said = answers.answers(lora, first).texts[0]
    # What the model says to the first question counts; the others stay as they are.
    known = Example("q0", rows[0].example.question, (said,), 0, aliases=(said,))
    got = SlickScorer(made)(lora, encoded([known, *(row.example for row in rows[1:])]))
    assert got.greedy[0, 0] and got.category[0] in ("HighlyKnown", "MaybeKnown")
    assert set(np.unique(got.sampled * SAMPLES)) <= set(range(SAMPLES + 1))
    unsaid = ~got.greedy.any(1) & (got.sampled == 0).all(1)
    assert ((got.category == UNKNOWN) == unsaid).all()


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(UserError, match="style_fraction"):
        next(prompts_of(open_run(style_rows=3), open_rows()))
    small = open_run()
    decoder = SimpleNamespace(config=replace(TINY, max_position_embeddings=40))
    tight = SimpleNamespace(**vars(small))
    tight.assembled = SimpleNamespace(decoder=decoder)
    with pytest.raises(UserError, match="context of 40; lower shots"):
        next(prompts_of(tight, open_rows()))
    (block, question) = next(prompts_of(tight, open_rows(), 1))[0].prompt.split("\n\n")
    assert "Answer: " in block and question == open_rows()[0].prompt


@pytest.mark.parametrize(
    ("greedy", "sampled", "category"),
    [
        ([1, 1, 1], False, "HighlyKnown"),  # no sample can take that away
        ([1, 1, 1], True, "HighlyKnown"),
        ([1, 1, 0], True, "MaybeKnown"),
        ([0, 0, 1], False, "MaybeKnown"),
        ([0, 0, 0], True, "WeaklyKnown"),
        ([0, 0, 0], False, "Unknown"),
    ],
)
def test_categories_are_those_of_the_papers_figure(greedy, sampled, category):
    assert slick_categories(np.array([greedy]), np.array([sampled])) == [category]


def test_rows_are_told_apart_and_shapes_must_agree():
    greedy = np.array([[True, True], [False, False]])
    assert list(slick_categories(greedy, [False, True])) == ["HighlyKnown", "WeaklyKnown"]
    with pytest.raises(ValueError, match="prompts"):
        slick_categories(greedy, [True])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-4, 0.002, 0.01, 0.05, 0.3, 1.0]), min_size=1, max_size=6),
    st.integers(1, SAMPLES),
)
def test_exact_probabilities_say_what_most_draws_say(probabilities, samples):
    rng = np.random.default_rng(0)
    drawn = rng.random((2000, len(probabilities), samples)) < np.array(probabilities)[:, None]
    share = drawn.any((1, 2)).mean()
    if abs(share - 0.5) > 0.05:  # nearer than that, draws themselves disagree
        assert would_be_sampled(np.array([probabilities]), samples) == [share > 0.5]


def test_one_sample_of_one_prompt_is_right_from_one_half_on():
    p = np.array([[0.49], [0.5], [1.0]])
    assert list(would_be_sampled(p, 1)) == [False, True, True]
