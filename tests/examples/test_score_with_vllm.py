"""The vLLM example against a server that speaks its protocol and computes with our model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.engine.tiny import log_softmax
from tests.examples.scored import example, scored
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


def command(folder, url):
    return [
        *("--calibration", str(folder / "adapter" / "calibration.json")),
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


@pytest.mark.parametrize("name", ["letters", "cloze", "chat"])
def test_a_server_gives_our_option_probabilities(name, serve, request, capsys):
    run = request.getfixturevalue(name)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "base")

    def answer(text, special):
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == 1
        padded = np.zeros((1, LONGEST), np.int32)
        padded[0, : len(ids)] = ids
        logprobs = log_softmax(np.asarray(forward(run.decoder, padded)[1][0], np.float64))
        values = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
        return tokenizer.convert_ids_to_tokens(ids), [None, *values]

    score_with_vllm.main(command(run.folder, serve(answer)))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    temperature = json.loads((run.folder / "adapter" / "calibration.json").read_text())[
        "temperature"
    ]
    for line, row, expected in zip(lines, run.encoded, run.predictions.probs, strict=True):
        k = len(row.completions)
        np.testing.assert_allclose(line["option_probs"], expected[:k], atol=1e-4)
        powered = expected[:k] ** (1 / temperature["value"])
        np.testing.assert_allclose(line["tempered_probs"], powered / powered.sum(), atol=1e-4)
        assert line["prediction"] == row.example.choices[int(np.argmax(expected))]


def test_a_server_that_does_not_echo_is_refused(serve, letters):
    with pytest.raises(SystemExit, match="does not echo"):
        score_with_vllm.main(command(letters.folder, serve(lambda text, special: ([], []))))


def test_tokens_that_run_across_the_end_of_the_prompt_are_refused(serve, letters):
    def merged(text, special):
        return [text[:3], text[3:]], [None, -1.0]

    with pytest.raises(SystemExit, match="cannot be scored after this prompt: 'Which"):
        score_with_vllm.main(command(letters.folder, serve(merged)))


def test_no_server_is_one_clear_line(letters):
    with pytest.raises(SystemExit, match="cannot be reached"):
        score_with_vllm.main(command(letters.folder, "http://127.0.0.1:9"))
