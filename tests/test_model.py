"""A model in memory: probabilities, answers, adapters in and out."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import cogcalib_jax as cc
from cogcalib_jax.hf.adapter import adapter_hash
from cogcalib_jax.inference.predict import Predictor
from tests.examples.scored import QUESTIONS, scored
from tests.library import LORA, ONE, SIZES, rows, task, write_base


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_base(folder / "base")
    return folder


@pytest.fixture(scope="module")
def model(place):
    """A model whose adapter changes what the base says."""
    made = cc.Model.from_pretrained(place / "base", lora=LORA, mesh=ONE)
    rng = np.random.default_rng(0)
    import jax

    noise = jax.tree.map(lambda x: x + rng.normal(0, 0.5, x.shape).astype(x.dtype), made.lora)
    return made.with_lora(noise)


def test_probabilities_are_those_of_the_predictor_and_sum_to_one(model):
    test = task().test
    found = model.predict(test)
    encoded = model.encode(test)
    wanted = Predictor(model.base.split, model.mesh, cc.EvaluationConfig())(model.lora, encoded)
    np.testing.assert_array_equal(found.probs, wanted.probs)
    np.testing.assert_allclose(found.probs.sum(-1), 1, atol=1e-6)
    assert found.labels.tolist() == [e.answer for e in test]
    assert [row["id"] for row in found.to_rows()] == [e.id for e in test]


def test_one_question_gets_the_answer_that_a_split_of_it_gets(model):
    row = rows()[5]
    answer = model.ask(row["question"], row["choices"])
    found = model.predict([{key: row[key] for key in ("question", "choices")}])
    assert answer.answer == row["choices"][found.predicted[0]]
    np.testing.assert_allclose(list(answer.probs.values()), found.probs[0], atol=1e-6)
    assert answer.confidence == max(answer.probs.values())
    lettered = dict(zip("ABCDEFGH", row["choices"], strict=False))
    assert model.ask(row["question"], lettered) == answer


def test_a_cut_passage_and_a_text_beyond_the_context_are_told(model, caplog):
    caplog.set_level("WARNING", "cogcalib_jax")
    model.ask("Box 1?", ["a", "b"], passage="It rained. " * 200)
    cut, long = caplog.messages
    assert "1 of 1 passages lost their middle" in cut and "longer than the model's context" in long


def test_rows_without_known_answers_are_not_scored(model):
    found = model.predict([{"question": "Box 1?", "choices": ["a", "b"]}])
    with pytest.raises(ValueError, match="answers"):
        _ = found.correct
    with pytest.raises(ValueError, match="answers"):
        _ = found.gold_nll


def test_the_base_is_what_is_left_without_the_adapter(place, model):
    base = cc.Model.from_pretrained(place / "base", mesh=ONE)
    test = task().test
    alone = model.without_adapter().predict(test).probs
    np.testing.assert_allclose(alone, base.predict(test).probs, atol=1e-6)
    assert np.abs(alone - model.predict(test).probs).max() > 1e-3


def test_a_calibrator_is_fitted_and_applied(model):
    made = task()
    calibrator = model.calibrate(made.calibration, "temperature")
    plain, scaled = model.predict(made.test), model.predict(made.test, calibrator=calibrator)
    wanted = calibrator.transform(plain.option_scores, mask=plain.mask)
    np.testing.assert_allclose(scaled.probs, wanted, atol=1e-12)
    kept = model.with_calibrator(calibrator).predict(made.test)
    np.testing.assert_array_equal(kept.probs, scaled.probs)
    again = cc.Calibrator.from_json(json.loads(json.dumps(calibrator.to_json())))
    np.testing.assert_array_equal(model.predict(made.test, calibrator=again).probs, scaled.probs)
    vector = model.calibrate(made.calibration, "vector")
    assert model.predict(made.test, calibrator=vector).probs.shape == plain.probs.shape


def test_a_merged_model_says_what_its_adapter_said(model):
    merged = model.merge_and_unload()
    assert merged.lora_config is None
    test = task().test
    np.testing.assert_allclose(merged.predict(test).probs, model.predict(test).probs, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_saved_is_loaded_again(place, model, tmp_path, merged):
    if merged:
        model.merge_and_unload().save_pretrained(tmp_path / "out")
        again = cc.Model.from_pretrained(tmp_path / "out", mesh=ONE)
    else:
        model.save_pretrained(tmp_path / "out")
        again = cc.Model.from_pretrained(place / "base", adapter=tmp_path / "out", mesh=ONE)
    test = task().test
    np.testing.assert_allclose(again.predict(test).probs, model.predict(test).probs, atol=1e-5)


def test_text_is_continued(model):
    one, other = model.generate(["Box", "Box 7"], max_new_tokens=5)
    assert [one] == model.generate("Box", max_new_tokens=5) and isinstance(other, str)
    sampled = {model.generate("Box", temperature=2.0, seed=s)[0] for s in range(4)}
    assert len(sampled) > 1


def test_open_questions_are_answered_and_not_predicted(model):
    open_rows = [{"question": f"Box {i}?", "answer": f"b{i}"} for i in range(40)]
    made = cc.Task.from_rows(open_rows, calibration_rows=8, validation_rows=4, test_rows=4)
    found = model.answer(made.test, max_new_tokens=4)
    assert len(found.answers.texts) == 4
    assert set(found.confidences) == {"sequence", "length_normalised"}
    with pytest.raises(cc.UserError, match="Use answer"):
        model.predict(made.test)
    with pytest.raises(cc.UserError, match="Use predict"):
        model.answer(task().test)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda m: m.ask("Q?", ["a", "a"]), "two of its choices are equal"),
        (lambda m: m.ask("Q?", ["a"]), "choice"),
        (lambda m: m.ask("Q?", "ab"), "choices are 'ab'; expected a list of texts"),
        (lambda m: m.ask("Q?", '["a", "b"]'), "expected a list of texts"),
        (lambda m: m.ask("Q?", [{"label": "A", "text": "a"}] * 2), "expected a list of texts"),
        (lambda m: m.predict([]), "questions: there are none; expected at least one"),
        (lambda m: m.calibrate(task().calibration[:0]), "questions: there are none"),
        (lambda m: m.predict(task().test, option_score="median"), "median'; expected mean, sum"),
        (lambda m: m.calibrate([{"question": "Q?"}]), "expected a split of a Task"),
        (lambda m: m.calibrate(task().calibration, "warmth"), "calibrator is 'warmth'; expected"),
        (lambda m: m.predict(task().test, calibrator=cc.LogitMixture()), "start"),
        (lambda m: m.calibrate(task().calibration, "mixture"), "expected a model with its start"),
    ],
)
def test_a_mistake_is_told_in_one_line(model, ask, told):
    with pytest.raises((cc.UserError, ValueError), match=told) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


def test_a_calibrator_takes_a_start_and_two_populations_with_the_same_say(model):
    base = model.without_adapter()
    own = dataclasses.replace(model, start=base)
    calibration, taught = task().calibration, task().validation
    fitted = own.calibrate(calibration, "linear_mixture", taught=taught)
    rows = [(m.predict(calibration), m.predict(taught)) for m in (model, base)]
    scores, start = (np.concatenate([p.option_scores for p in pair]) for pair in rows)
    answers = np.concatenate([p.answers for p in rows[0]])
    weights = np.concatenate([np.full(len(p.answers), 1 / len(p.answers)) for p in rows[0]])
    wanted = cc.LinearMixture().fit(scores, answers, start_scores=start, weights=weights)
    np.testing.assert_allclose(fitted.start_weight_, wanted.start_weight_, atol=1e-4)
    np.testing.assert_allclose(fitted.temperature_, wanted.temperature_, rtol=1e-4)
    with pytest.raises(ValueError, match="platt weighs all rows alike"):
        own.calibrate(calibration, "platt", taught=taught)


def test_an_adapter_and_a_fresh_one_contradict_each_other(place):
    with pytest.raises(cc.UserError, match="expected one of them"):
        cc.Model.from_pretrained(place / "base", adapter=place, lora=LORA)


def test_the_folder_of_a_run_gives_its_model(tmp_path):
    run = scored(tmp_path, "letters", "sum", few_shot=1)
    to_yaml = {"model": {"path": str(run.folder / "base")}, "seed": 0}
    (tmp_path / "config.yaml").write_text(json.dumps(to_yaml))  # JSON is YAML
    model = cc.Model.from_run(tmp_path, mesh=ONE)
    assert model.option_score == "sum"
    found = model.with_calibrator(None).predict(
        [{k: v for k, v in row.items() if v is not None} for row in QUESTIONS]
    )
    np.testing.assert_allclose(found.probs, run.predictions.probs, atol=1e-6)
    assert found.encoded[2].prompt == run.encoded[2].prompt
    with pytest.raises(cc.UserError, match="expected the folder of a method"):
        cc.Model.from_run(tmp_path / "base")


def test_a_saved_adapter_says_how_it_is_asked_and_calibrated(place, model, tmp_path):
    made = task()
    calibrator = model.calibrate(made.calibration, "platt")
    asked = dataclasses.replace(
        model, prompting=made.test.prompting, option_score="sum", calibrator=calibrator
    )
    asked.save_pretrained(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert stored["calibrator"] == calibrator.to_json() and stored["temperature"]["value"] is None
    again = cc.Model.from_pretrained(place / "base", adapter=tmp_path / "out", mesh=ONE)
    assert again.option_score == "sum"
    row = {key: rows()[3][key] for key in ("question", "choices")}
    np.testing.assert_allclose(again.predict([row]).probs, asked.predict([row]).probs, atol=1e-5)
    assert again.predict([row]).encoded[0].prompt == asked.predict([row]).encoded[0].prompt


def test_a_calibrator_serves_the_rule_that_it_was_fitted_by(model):
    made = cc.Task.from_rows(rows(), prompt="cloze", **SIZES)
    by_sum = model.calibrate(made.calibration, "platt", option_score="sum")
    tuned = model.with_calibrator(model.calibrate(made.calibration, "platt"))
    with pytest.raises(cc.UserError, match="option_score is sum; expected mean, the rule of the m"):
        tuned.predict(made.test, option_score="sum")
    found = tuned.predict(made.test, option_score="sum", calibrator=by_sum)
    wanted = by_sum(found.option_scores, mask=found.mask)
    np.testing.assert_allclose(found.probs, wanted, atol=1e-9)
    assert tuned.with_calibrator(None).predict(made.test, option_score="sum").calibrator is None


def test_what_one_adapter_cannot_apply_is_not_saved_with_it(model, tmp_path):
    mixed = model.with_calibrator(cc.LogitMixture())
    with pytest.raises(cc.UserError, match="needs the start's scores"):
        mixed.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_a_run_takes_its_start_from_the_folder_beside_it(tmp_path):
    run = scored(tmp_path, "letters", "sum")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"path": str(tmp_path / "base")}}))
    shutil.copytree(tmp_path / "adapter", tmp_path / "start_adapter")
    rng = np.random.default_rng(0)
    scores, start = rng.normal(size=(2, 40, 3))
    mixture = cc.LogitMixture().fit(scores, rng.integers(0, 3, 40), start_scores=start)
    file = tmp_path / "adapter" / "calibration.json"
    stored = json.loads(file.read_text()) | {"calibrator": mixture.to_json()}
    file.write_text(
        json.dumps(stored | {"start_adapter_sha256": adapter_hash(tmp_path / "adapter")})
    )
    model = cc.Model.from_run(tmp_path, mesh=ONE)
    rows = [{k: v for k, v in row.items() if v is not None} for row in QUESTIONS]
    plain = model.with_calibrator(None).predict(rows)
    np.testing.assert_allclose(plain.probs, run.predictions.probs, atol=1e-6)
    # The start is the same model here, so both scores are the same.
    wanted = mixture.transform(
        plain.option_scores, mask=plain.mask, start_scores=plain.option_scores
    )
    np.testing.assert_allclose(model.predict(rows).probs, wanted, atol=1e-6)
    shutil.rmtree(tmp_path / "start_adapter")
    with pytest.raises(cc.UserError, match="is not there"):
        cc.Model.from_run(tmp_path, mesh=ONE)


def test_a_calibrator_of_one_list_of_options_is_not_applied_to_another(model):
    made = task()
    vector = model.calibrate(made.calibration, "vector")
    tuned = model.with_calibrator(vector)
    assert tuned.predict(made.test).probs.shape == (12, 4)  # letters: all questions have A to D
    fewer = [
        {"question": "Box?", "choices": ["a", "b"]},
        {"question": "Q?", "choices": list("abc")},
    ]
    with pytest.raises(cc.UserError, match="expected one list of options"):
        tuned.predict(fewer)


def test_noise_on_the_adapter_averages_and_is_no_adapter(model, tmp_path):
    split = task()
    noisy = model.with_tfb(split.train, "tfb(steps=2, tolerance=0.2)", draws=3)
    found, plain = noisy.predict(split.test), model.predict(split.test)
    assert found.averaged.count == 3 and np.abs(found.probs - plain.probs).max() > 1e-4
    again = model.with_tfb(split.train, "tfb(steps=2, tolerance=0.2)", draws=3)
    assert again.tfb.sigma == noisy.tfb.sigma > 0
    np.testing.assert_array_equal(again.predict(split.test).probs, found.probs)
    assert noisy.with_lora(model.lora).tfb is None and noisy.without_adapter().tfb is None
    for refused in (lambda: noisy.save_pretrained(tmp_path / "x"), noisy.merge_and_unload):
        with pytest.raises(cc.UserError, match="call it before with_tfb"):
            refused()
    with pytest.raises(cc.UserError, match="gold_nll needs answers"):
        model.with_tfb([{"question": "1?", "choices": ["a", "b"]}], "tfb(criterion=gold_nll)")
