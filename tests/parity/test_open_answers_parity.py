"""Exact match and F1 against the SQuAD scores of torchmetrics."""

import numpy as np
import pytest

from cogcalib_jax.inference.open_ended import exact_match, token_f1

text = pytest.importorskip("torchmetrics.functional.text")

CASES = [
    ("The Beatles", ["Beatles"]),
    ("paris", ["Paris, France", "Paris"]),
    ("in the year 1969", ["1969", "July 1969"]),
    ("l’été à Paris", ["l'été à paris"]),
    ("Straße", ["STRASSE", "strasse"]),
    ("İstanbul", ["istanbul"]),
    ("an", ["the"]),
    ("", [""]),
    ("", ["x"]),
    ("x", ["", "y"]),
    ("...", ["!"]),
    ("a b a b", ["b a b", "c"]),
    ("東京", ["東京", "Tokyo"]),
    ("new\u00a0york  city", ["New York City"]),
    ("the thea the", ["thea"]),
    ("co-operate", ["cooperate", "co operate"]),
    ("\n42\t", ["42"]),
]


def test_scores_equal_torchmetrics_on_every_row():
    for prediction, answers in CASES:
        scores = text.squad(
            [{"prediction_text": prediction, "id": "1"}],
            [{"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "1"}],
        )
        assert 100 * exact_match(prediction, answers) == scores["exact_match"].item(), prediction
        np.testing.assert_allclose(
            100 * token_f1(prediction, answers), scores["f1"].item(), atol=1e-4, err_msg=prediction
        )
