"""SQuAD's scores: what normalisation takes away, and what it leaves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogcalib_jax.inference.open_ended import exact_match, normalise_answer, token_f1

TEXT = st.text(alphabet="aAnthe THE.,'-’éß \t\n0", max_size=30)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles", "beatles"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("the.", ""),
        ("rock-n-roll", "rocknroll"),
        # Punctuation goes before articles: what an apostrophe parted becomes one word.
        ("the'a", "thea"),
        ("THEATRE", "theatre"),
        ("A\tB\nC", "b c"),
        ("l’été", "l’été"),
        ("Ångström the 3rd!", "ångström 3rd"),
        ("", ""),
        ("?!", ""),
        ("a", ""),
    ],
)
def test_normalisation_follows_the_published_rules(text, normal):
    assert normalise_answer(text) == normal


def test_any_alias_counts():
    aliases = ("New York City", "NYC", "the big apple")
    assert exact_match("nyc.", aliases) and exact_match("Big Apple", aliases)
    assert not exact_match("New York", aliases)
    assert token_f1("New York", aliases) == pytest.approx(0.8)
    # The best of each alias, not of all their words together.
    assert token_f1("new apple", aliases) == pytest.approx(0.5)


def test_f1_counts_words_as_often_as_both_have_them():
    assert token_f1("b b b", ["b b c"]) == pytest.approx(2 / 3)
    assert token_f1("x", ["y"]) == 0.0


def test_an_answer_without_words_matches_only_its_like():
    assert exact_match("the", ["?"]) and token_f1("the", ["?"]) == 1.0
    assert token_f1("", ["paris"]) == token_f1("paris", [""]) == 0.0


@given(TEXT, TEXT)
def test_f1_is_symmetric_bounded_and_one_on_a_match(a, b):
    f1 = token_f1(a, [b])
    assert 0 <= f1 <= 1 and f1 == token_f1(b, [a])
    if exact_match(a, [b]):
        assert f1 == 1


@given(TEXT)
def test_normalising_twice_changes_words_no_more_than_once(text):
    normal = normalise_answer(text)
    assert normal == " ".join(normal.split()) and normal == normal.lower()
    assert exact_match(text, [text])
