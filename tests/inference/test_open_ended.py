"""Greedy answers and confidences against full forward passes, one token after the other."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from cogcalib_jax.data.batching import scored_batches
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.tokenizer import load_tokenizer
from cogcalib_jax.inference.config import EvaluationConfig, OpenConfig
from cogcalib_jax.inference.forward import example_losses
from cogcalib_jax.inference.open_ended import (
    Answers,
    OpenPredictor,
    normalise_answer,
    proposal,
    stop_tokens,
)
from cogcalib_jax.inference.predict import Predictor, SplitPass
from cogcalib_jax.method.config import LossConfig
from cogcalib_jax.models import generate as generation
from cogcalib_jax.models.parameters import split_model
from tests.data.chats import LLAMA_2, chat_tokenizer
from tests.inference.open_rows import DATA, NAMES, VOCAB, encoded, open_examples, tokenizer
from tests.inference.tiny import TINY, full_logits, log_softmax, option_logprob, tiny_decoder
from tests.models.small import one_device

NEW_TOKENS = 5
STOP, EOS = 16, 2
CONFIG = EvaluationConfig(batch_size=4, open=OpenConfig(max_new_tokens=NEW_TOKENS, samples=3))
SHAPE = replace(TINY, vocab_size=VOCAB, max_position_embeddings=256)


@cache
def decoder():
    return tiny_decoder(config=SHAPE)


@cache
def model():
    return split_model(decoder())


@cache
def predictor(config=CONFIG) -> OpenPredictor:
    split = model()[0]
    scores = Predictor(split, one_device(), config)
    return OpenPredictor(split, config, DATA, tokenizer(), scores)


@cache
def questions():
    """10 in batches of 4, so that the last batch is filled up."""
    return encoded(open_examples(10))


@cache
def predictions():
    return predictor()(model()[1], questions(), seed=3)


def greedy(prompt_ids) -> tuple[tuple[int, ...], float]:
    """Tokens and their summed log-probability, each from the full logits of all before it."""
    ids, total = list(prompt_ids), 0.0
    while len(ids) < len(prompt_ids) + NEW_TOKENS:
        scored = log_softmax(full_logits(decoder(), ids)[-1])
        ids.append(int(scored.argmax()))
        total += scored.max()
        if ids[-1] in (STOP, EOS):
            break
    return tuple(ids[len(prompt_ids) :]), total


def test_answers_and_their_probabilities_are_the_models_own():
    got = predictions()
    ended = [tokens.index(STOP) < NEW_TOKENS - 1 for tokens in got.answers.tokens if STOP in tokens]
    assert 0 < sum(ended) < len(got.answers.tokens)
    for i, row in enumerate(questions()):
        tokens, logprob = greedy(row.prompt_ids)
        assert got.answers.tokens[i] == tokens
        np.testing.assert_allclose(got.answers.logprobs[i], logprob, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got.confidences["sequence"][i], np.exp(logprob), rtol=1e-3)
        np.testing.assert_allclose(
            got.confidences["length_normalised"][i], np.exp(logprob / len(tokens)), rtol=1e-3
        )


def test_the_reference_is_scored_with_its_stop():
    got = predictions()
    for i, row in enumerate(questions()):
        assert row.completion_ids[0][-1] == STOP
        wanted = option_logprob(decoder(), row, 0)
        np.testing.assert_allclose(got.reference_logprobs[i], wanted, rtol=1e-4, atol=1e-4)
        assert got.reference_tokens[i] == len(row.completion_ids[0])


def test_agreement_is_the_share_of_equal_samples():
    assert set(predictions().confidences["agreement"]) <= {0, 1 / 3, 2 / 3, 1}
    again = predictor()(model()[1], questions(), seed=3)
    np.testing.assert_array_equal(
        again.confidences["agreement"], predictions().confidences["agreement"]
    )
    # As good as greedy: every sample is the greedy answer.
    cold = replace(CONFIG, open=replace(CONFIG.open, temperature=1e-4))
    assert (predictor(cold)(model()[1], questions()).confidences["agreement"] == 1).all()


def test_sampled_matches_count_accepted_answers():
    """Cold, every sample is the greedy answer; what that is becomes an alias of every other row."""
    texts = predictions().answers.texts
    rows = [
        replace(row, example=replace(row.example, aliases=(*row.example.aliases, text)))
        if i % 2
        else row
        for i, (row, text) in enumerate(zip(questions(), texts, strict=True))
    ]
    cold = predictor().sampled_matches(model()[1], rows, temperature=1e-4, samples=2)
    np.testing.assert_array_equal(cold, predictor().answers(model()[1], rows).exact_match)
    assert cold.sum() >= 5
    warm = predictor().sampled_matches(model()[1], rows, temperature=1.0, samples=4, seed=1)
    assert set(warm) <= {0, 0.25, 0.5, 0.75, 1} and (warm != cold).any()


def test_agreement_estimates_the_answers_probability():
    """Answers of one token, many samples: the share is near the probability of all tokens whose
    texts are alike once normalised."""
    config = replace(
        CONFIG, batch_size=16, open=OpenConfig(max_new_tokens=1, samples=400, p_true=False)
    )
    one = questions()[:1]
    got = predictor(config)(model()[1], one, seed=1)
    probs = np.exp(log_softmax(full_logits(decoder(), one[0].prompt_ids)[-1]))
    texts = [tokenizer().decode([i], skip_special_tokens=True) for i in range(VOCAB)]
    said = normalise_answer(got.answers.texts[0])
    alike = np.array([normalise_answer(text) == said for text in texts])
    wanted = probs[alike].sum()
    error = np.sqrt(wanted * (1 - wanted) / 400)
    assert abs(got.confidences["agreement"][0] - wanted) < 5 * error
    assert "p_true" not in got.confidences


def test_p_true_is_the_probability_of_true_over_true_and_false():
    got = predictions()
    data = replace(DATA, prompt="letters", max_length=200)
    asked = [
        proposal(row.example, text)
        for row, text in zip(questions(), got.answers.texts, strict=True)
    ]
    split, _ = encode_split("P(True)", asked, tokenizer(), data)
    assert split[0].prompt.endswith("Is the proposed answer:\nA. True\nB. False\nAnswer:")
    assert f"\nProposed answer: {got.answers.texts[0]}\n" in split[0].prompt
    for i, row in enumerate(split):
        true, false = (option_logprob(decoder(), row, k) for k in (0, 1))
        wanted = 1 / (1 + np.exp(false - true))
        np.testing.assert_allclose(got.confidences["p_true"][i], wanted, atol=1e-4)


def test_other_parameters_and_other_questions_do_not_compile_again():
    compiled = generation._generate._cache_size()
    lora = jax.tree.map(lambda x: jax.device_put(2 * np.asarray(x), x.sharding), model()[1])
    other = encoded(open_examples(6, seed=1))
    assert predictor().answers(lora, questions()).texts != predictions().answers.texts
    predictor().answers(lora, [row for row in other if len(row.prompt_ids) <= 16])
    assert generation._generate._cache_size() == compiled


def with_own_answers(rows):
    """Every other question with what the model says as its reference, token for token; of the
    rest every other one with that as its second alias."""
    changed = []
    for i, row in enumerate(rows):
        tokens, _ = greedy(row.prompt_ids)
        said = tuple(tokens)
        example = replace(row.example, aliases=(*row.example.aliases, "of"))
        if i % 2 == 0:
            text = tokenizer().decode(list(said), skip_special_tokens=True).strip()
            example = replace(row.example, aliases=(text, "of"), choices=(text,))
            row = replace(row, completion_ids=(said,))
        changed.append(replace(row, example=example))
    return type(rows)(changed)


def test_teacher_forced_correctness_is_greedy_exact_match_with_the_reference():
    """The gate's cheap rule: every token the argmax given the reference's tokens before it."""
    rows = with_own_answers(questions())

    def nll_and_correct(decoder, batch):
        losses = example_losses(decoder, batch, LossConfig())
        return losses.nll, losses.correct

    passes = SplitPass(model()[0], one_device(), nll_and_correct)
    places, results = passes(model()[1], scored_batches(rows, 4, None))
    nll, correct = (values[np.argsort(places)] for values in results)
    answers = predictor().answers(model()[1], rows)
    said = [got == row.completion_ids[0] for got, row in zip(answers.tokens, rows, strict=True)]
    assert (correct > 0).tolist() == said == [i % 2 == 0 for i in range(10)]
    assert answers.exact_match[::2].all()
    # Where it is right, the mean NLL of the reference is that of the answer: one gate an example.
    lengths = np.array([len(tokens) for tokens in answers.tokens])
    np.testing.assert_allclose(nll[::2], (-answers.logprobs / lengths)[::2], rtol=1e-4)


def test_scores_are_taken_over_all_accepted_answers():
    rows = questions()
    said = predictions().answers.texts
    example = replace(rows[1].example, aliases=("nobody", f"The {said[1]}!"))
    got = predictor().answers(model()[1], [rows[0], replace(rows[1], example=example), *rows[2:]])
    assert got.exact_match[1] and got.f1[1] == 1.0
    assert not predictions().answers.exact_match[1]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ((22, 23, STOP), f"{NAMES[0]} {NAMES[1]}"),
        ((22, EOS), NAMES[0]),
        ((STOP,), ""),
        ((22, 23), f"{NAMES[0]} {NAMES[1]}"),
    ],
)
def test_the_answer_is_the_text_before_the_stop(tokens, text):
    assert predictor()._text(generation.Generated(tokens, (0.0,) * len(tokens))) == text


def test_a_space_before_the_end_of_turn_does_not_keep_an_answer_from_ending():
    """Llama 2's chat template writes " </s>", which is no single token."""
    chat = chat_tokenizer(LLAMA_2)
    scores = Predictor(model()[0], one_device(), CONFIG)
    asked = OpenPredictor(model()[0], CONFIG, replace(DATA, prompt="chat"), chat, scores)
    assert asked._stop_tokens == {chat.eos_token_id}
    ids = tuple(chat(" Ada L. </s>", add_special_tokens=False)["input_ids"])
    assert asked._text(generation.Generated(ids, (0.0,) * len(ids))) == "Ada L."


def test_a_tokenizer_that_cannot_end_an_answer_is_refused():
    assert stop_tokens(tokenizer(), "\n") == {STOP}
    assert stop_tokens(tokenizer(), "") == frozenset()
    with pytest.raises(UserError, match="none of its tokens contains '#'"):
        stop_tokens(tokenizer(), "#")


def test_stop_tokens_of_real_tokenizers_hold_every_token_with_a_line_end(realdata):
    for folder in sorted((realdata / "tokenizers").iterdir()):
        found = load_tokenizer(folder)
        tokens = stop_tokens(found, "\n")
        for text in ("\n", "\n\n", "a\n", ".\n", ")\n\n"):
            last = found(text, add_special_tokens=False)["input_ids"]
            assert tokens & set(last), (folder.name, text)
        plain = found("Paris, the capital of France", add_special_tokens=False)["input_ids"]
        assert not tokens & set(plain)


def test_a_tokenizer_without_the_words_for_p_true_says_how_to_leave_it_out():
    bare = replace(DATA, max_length=8)
    scores = Predictor(model()[0], one_device(), CONFIG)
    poor = tokenizer().__class__(tokenizer_object=_without_letters(), unk_token="<unk>")
    with pytest.raises(UserError, match="same tokens.*--evaluation.open.p-true false"):
        OpenPredictor(model()[0], CONFIG, bare, poor, scores)


def _without_letters() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "\n": 1, "x": 2}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizer().backend_tokenizer.pre_tokenizer
    return made


def test_an_answer_that_p_true_cannot_show_has_none_and_is_said():
    ask = predictor()._p_true
    texts = [*predictions().answers.texts[:9], "</s>"]
    found, notes = ask(predictor()._predictor, model()[1], questions(), texts)
    np.testing.assert_allclose(found[:9], predictions().confidences["p_true"][:9], atol=1e-6)
    assert np.isnan(found[9])
    (note,) = notes
    assert note.startswith("P(True) cannot be asked of 1 of 10 answers; the first: row q9: its")


def test_answers_are_in_the_splits_order_whatever_the_batches():
    """Longest first, so that batches of like lengths mean another order."""
    rows = sorted(questions(), key=lambda row: -len(row.prompt_ids))
    got: Answers = predictor().answers(model()[1], rows)
    by_id = dict(zip((row.id for row in questions()), predictions().answers.texts, strict=True))
    assert [by_id[row.id] for row in rows] == list(got.texts)
