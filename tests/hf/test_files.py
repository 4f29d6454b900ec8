"""A Hub id becomes a folder, or one line that says why it does not."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.files import model_folder


def test_a_local_folder_is_never_fetched(tmp_path):
    assert model_folder(tmp_path, fetch=lambda *_, **__: pytest.fail("fetched")) == tmp_path


def test_what_is_fetched_depends_on_whether_weights_are_needed(tmp_path):
    asked = []

    def fetch(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    assert model_folder("org/model", weights=False, fetch=fetch) == tmp_path
    model_folder("org/model", fetch=fetch)
    (name, description), (_, whole) = asked
    assert name == "org/model"
    assert not any("safetensors" in pattern for pattern in description)
    assert "model-*.safetensors" in whole and set(description) < set(whole)


def http_error(kind, status):
    class Response:
        headers, request, status_code = {}, None, status

    return kind(f"{status} Client Error. (Request ID: x)\n\nMore.", response=Response())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (http_error(GatedRepoError, 403), "is gated; ask for access at .*org/model"),
        (http_error(RepositoryNotFoundError, 404), r"refused it \(404 Client Error.*\); check"),
        (ConnectionError("no route"), "cannot be reached"),
        (
            json.JSONDecodeError("Expecting value", "<html>", 0),
            "failed .JSONDecodeError: Expecting",
        ),
        (RuntimeError("Data processing error: CAS service\nmore"), "failed .RuntimeError: Data"),
        (OSError(28, "No space left on device"), "failed .*No space left on device"),
        (Exception(), r"failed \(Exception: Exception\)"),
    ],
)
def test_whatever_the_client_raises_is_one_line(error, says):
    def fetch(*_, **__):
        raise error

    with pytest.raises(UserError, match=f"^org/model: .*{says}") as told:
        model_folder("org/model", fetch=fetch)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("answer", ["broken off", "no JSON"])
def test_a_server_that_breaks_off_is_one_line(answer, tmp_path, monkeypatch):
    """Against the client itself, whose errors are those of the HTTP library below it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if answer == "broken off":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)

    def fetch(name, **fields):
        return api.snapshot_download(name, cache_dir=tmp_path, **fields)

    try:
        with pytest.raises(UserError, match="org/model: the download from the Hub failed") as told:
            model_folder("org/model", fetch=fetch)
    finally:
        server.shutdown()
        server.server_close()
    assert "\n" not in str(told.value)
