"""Which calibrators a run and a question set can have."""

import json

import pytest

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.cli.evaluated import ModelCalibrator, stored_for
from cogcalib_jax.cli.prepare import require_calibrator
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from tests.calibration.rows import drawn
from tests.examples.scored import scored
from tests.inference.open_rows import encoded, open_examples

OPEN = encoded(open_examples(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("calibrators") / "run", "letters", "sum")


def one_list(encoded):
    """The rows with as many options as the first."""
    return EncodedSplit(e for e in encoded if e.completions == encoded[0].completions)


def test_one_list_of_options_is_asked_for_before_training(run):
    vector = EvaluationConfig(calibrator="vector")
    with pytest.raises(
        UserError,
        match=r"evaluation.calibrator is vector; expected one list .*"
        r"custom has \d lists. Use another, or a prompt",
    ):
        require_calibrator(vector, "custom", run.encoded)
    require_calibrator(vector, "custom", one_list(run.encoded))
    require_calibrator(EvaluationConfig(calibrator="mixture"), "custom", run.encoded)


def test_open_questions_have_calibrators_of_their_own():
    require_calibrator(EvaluationConfig(), "qa", OPEN)
    with pytest.raises(UserError, match="evaluation.calibrator is platt; expected temperature for"):
        require_calibrator(EvaluationConfig(calibrator="platt"), "qa", OPEN)
    with pytest.raises(UserError, match="calibrator is platt; expected none for open questions"):
        ModelCalibrator(CALIBRATORS.make("platt")).require(OPEN)


def test_a_stored_vector_is_for_the_options_it_was_fitted_on(run):
    file = run.folder / "adapter" / "calibration.json"
    content, options = json.loads(file.read_text()), list(run.encoded[0].completions)
    fitted = CALIBRATORS.make("vector").fit(*drawn(options=len(options), short=False)[:2])
    content |= {"calibrator": fitted.to_json(), "calibrator_options": options}
    file.write_text(json.dumps(content))
    assert stored_for(file.parent, "mean") is None
    found = stored_for(file.parent, "sum")
    found.require(one_list(run.encoded))
    with pytest.raises(UserError, match="calibrator is vector, fitted on questions with the opti"):
        found.require(run.encoded)
    file.write_text(json.dumps(content | {"calibrator_options": None}))
    with pytest.raises(UserError, match=r"damaged \(calibrator_options is None; expected the list"):
        stored_for(file.parent, "sum")
