"""The vLLM example against a server that speaks its protocol and computes with our model."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from flax import nnx
from scipy.special import softmax
from transformers import AutoTokenizer

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.inference.posthoc import reduced_adapter
from cogcalib_jax.models.parameters import split_model
from tests.examples.scored import example, scored
from tests.inference.tiny import log_softmax
from tests.models.small import forward

LONGEST = 256
score_with_vllm = example("score_with_vllm")


@pytest.fixture
def serve():
    """Starts a server around `answer(text) -> (tokens, log-probabilities)`; gives its address."""
    servers = []

    def start(answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/completions" and body["max_tokens"] == 1
                choices = []
                special = body.get("add_special_tokens", True)
                for index, text in enumerate(body["prompt"]):
                    tokens, values = answer(text, special) if body["echo"] else ([], [])
                    # One generated token follows, with its own log-probability.
                    logprobs = {"tokens": [*tokens, "!"], "token_logprobs": [*values, -0.5]}
                    choices.append({"index": index, "logprobs": logprobs})
                content = json.dumps({"choices": choices[::-1]}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def command(folder, url, part="merged"):
    """`part`: merged or adapter, whose calibration.json is given."""
    (folder / "merged").mkdir(exist_ok=True)
    stored = json.loads((folder / "adapter" / "calibration.json").read_text())
    merged = folder / "merged" / "calibration.json"
    merged.write_text(json.dumps(stored | {"merged": True}))
    return [
        *("--calibration", str(folder / part / "calibration.json")),
        *("--questions", str(folder / "questions.jsonl"), "--model", "merged", "--url", url),
    ]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("letters") / "run", "letters", "sum")


@pytest.fixture(scope="module")
def cloze(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("cloze") / "run", "cloze", "mean")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("chat") / "run", "chat", "chars", few_shot=1)


def model_answer(run, decoder):
    """A server's answers that `decoder` computes."""
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "base")

    def answer(text, special):
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == 1
        padded = np.zeros((1, LONGEST), np.int32)
        padded[0, : len(ids)] = ids
        logprobs = log_softmax(np.asarray(forward(decoder, padded)[1][0], np.float64))
        values = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
        return tokenizer.convert_ids_to_tokens(ids), [None, *values]

    return answer


@pytest.mark.parametrize("name", ["letters", "cloze", "chat"])
def test_a_server_gives_our_option_probabilities(name, serve, request, capsys):
    run = request.getfixturevalue(name)
    score_with_vllm.main(command(run.folder, serve(model_answer(run, run.decoder))))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    temperature = json.loads((run.folder / "adapter" / "calibration.json").read_text())[
        "temperature"
    ]
    for line, row, expected in zip(lines, run.encoded, run.predictions.probs, strict=True):
        k = len(row.completions)
        np.testing.assert_allclose(line["option_probs"], expected[:k], atol=1e-4)
        powered = expected[:k] ** (1 / temperature["value"])
        np.testing.assert_allclose(line["tempered_probs"], powered / powered.sum(), atol=1e-4)
        np.testing.assert_allclose(line["calibrated_probs"], line["tempered_probs"], atol=1e-9)
        assert line["prediction"] == row.example.choices[int(np.argmax(expected))]


def test_an_unmerged_adapter_on_the_head_is_refused_for_the_true_reason(letters):
    with pytest.raises(SystemExit, match=r"unmerged adapter on lm_head.*vllm#51594.*merge it"):
        score_with_vllm.main(command(letters.folder, "http://127.0.0.1:9", part="adapter"))


def test_an_adapter_folder_written_before_the_field_existed_is_refused_too(letters, tmp_path):
    shutil.copytree(letters.folder / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "calibration.json"
    stored = json.loads(file.read_text())
    old = {k: v for k, v in stored.items() if k not in ("adapter_touches_head", "merged", "probe")}
    file.write_text(json.dumps(old))
    with pytest.raises(SystemExit, match="unmerged adapter on lm_head"):
        score_with_vllm.require_merged_head(file, old)


def test_a_server_that_drops_the_heads_adapter_is_found_before_any_score(letters, serve, capsys):
    _, lora = split_model(letters.decoder)
    reduced = reduced_adapter(lora, touches_head=True)
    graphdef, _, base = nnx.split(letters.decoder, nnx.LoRAParam, ...)
    dropped = nnx.merge(graphdef, reduced, base)
    with pytest.raises(SystemExit, match=r"nats a token off; expected at most 0\.25"):
        score_with_vllm.main(command(letters.folder, serve(model_answer(letters, dropped))))
    assert capsys.readouterr().out == ""


def test_a_tolerance_may_be_given(letters, serve, capsys):
    def noisy(text, special):
        tokens, values = model_answer(letters, letters.decoder)(text, special)
        return tokens, [None, *(value - 0.5 for value in values[1:])]

    words = command(letters.folder, serve(noisy))
    with pytest.raises(SystemExit, match="0.5 nats a token off"):
        score_with_vllm.main(words)
    score_with_vllm.main([*words, "--tolerance", "0.6"])
    assert "at most 0.5 nats a token off (allowed 0.6)" in capsys.readouterr().err


def test_a_server_with_another_tokenizer_is_found_before_any_score(letters, serve, capsys):
    def bytewise(text, special):
        return list(text), [None, *[-1.0] * (len(text) - 1)]

    with pytest.raises(SystemExit, match="cuts the options .* with the tokenizer of the training"):
        score_with_vllm.main(command(letters.folder, serve(bytewise)))
    assert capsys.readouterr().out == ""


def test_a_server_that_does_not_echo_is_refused(serve, letters):
    with pytest.raises(SystemExit, match="does not echo"):
        score_with_vllm.main(command(letters.folder, serve(lambda text, special: ([], []))))


def test_tokens_that_run_across_the_end_of_the_prompt_are_refused(serve, letters):
    def merged(text, special):
        return [text[:3], text[3:]], [None, -1.0]

    with pytest.raises(SystemExit, match="cannot be scored after this prompt: '"):
        score_with_vllm.main(command(letters.folder, serve(merged)))


def test_no_server_is_one_clear_line(letters):
    with pytest.raises(SystemExit, match="cannot be reached"):
        score_with_vllm.main(command(letters.folder, "http://127.0.0.1:9"))


def drawn(options, n=200):
    """Scores and answers that each calibrator can be fitted on."""
    rng = np.random.default_rng(options)
    scores = rng.normal(0, 3, (n, options))
    answers = [rng.choice(options, p=softmax(row / 2)) for row in scores]
    return scores, np.array(answers)


@pytest.mark.parametrize("module", ["score_with_vllm", "score_with_transformers"])
@pytest.mark.parametrize("name", ["temperature", "vector", "platt", "isotonic"])
def test_the_examples_apply_a_stored_calibrator(name, module):
    if module == "score_with_transformers":
        pytest.importorskip("torch")
        pytest.importorskip("peft")
    fitted = CALIBRATORS.make(name).fit(*drawn(4))
    stored = {"calibrator": fitted.to_json(), "calibrator_options": list("ABCD")}
    stored, apply = json.loads(json.dumps(stored)), example(module).calibrated
    scores = np.concatenate([drawn(4)[0][:50], [[0.0, -800.0, -801.0, -900.0]]])
    got = [apply(stored, row.tolist(), list("ABCD")) for row in scores]
    np.testing.assert_allclose(got, fitted(scores), atol=1e-9)
    assert apply({"calibrator": None}, [0.0, 1.0], ["A", "B"]) is None
    old = {"temperature": {"value": 2.0}}
    np.testing.assert_allclose(apply(old, [0.0, 1.0], ["A", "B"]), softmax([0.0, 0.5]))
    if name == "vector":
        with pytest.raises(SystemExit, match="calibrator is vector, fitted on the options"):
            apply(stored, scores[0].tolist(), list("WXYZ"))


def test_an_example_with_one_adapter_refuses_a_mixture_before_the_work(letters, capsys):
    words = command(letters.folder, "http://127.0.0.1:9")
    file = letters.folder / "merged" / "calibration.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"calibrator": {"calibrator": "mixture"}}))
    with pytest.raises(SystemExit, match="calibrator is mixture; expected temperature, daca"):
        score_with_vllm.main(words)
