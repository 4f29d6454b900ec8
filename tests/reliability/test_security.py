"""What SECURITY.md promises: files that somebody else made are data, and stay in their place."""

import json
import pickle
import re
import shutil
import struct
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest

import eval as eval_program
import train
from cogcalib_jax.cli.predict import predicting_calibrator
from cogcalib_jax.data.formats import read_file
from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.hf import merge
from cogcalib_jax.hf.files import open_folder
from cogcalib_jax.hf.tokenizer import load_tokenizer
from cogcalib_jax.hf.weights import load_decoder
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.report.report import write_report
from tests.cli.small_base import arguments, write_base
from tests.models.small import one_device
from tests.reliability.forbidden import forbidden
from tests.reliability.place import ADAPTER_WEIGHTS, WEIGHTS, Pickle, Place, write
from tests.report.synthetic import option_probs, write_config, write_evaluation, write_training

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = [*REPOSITORY.glob("*.py"), *sorted((REPOSITORY / "cogcalib_jax").rglob("*.py"))]
EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
TOKEN = "hf_ThisIsNoRealTokenButLooksLikeOne"
PERSON = "ada-lovelace"


# It calls `malloc_trim` of the C library that Python itself runs on, and loads no file.
CALLS_THE_C_LIBRARY = "cogcalib_jax/compile_cache.py"


def test_no_source_file_does_what_would_run_code_of_others():
    found = [
        f"{name}:{what}"
        for file in SOURCES
        for what in forbidden(file.read_text(encoding="utf-8"))
        if (name := str(file.relative_to(REPOSITORY))) != CALLS_THE_C_LIBRARY
        or not what.endswith("imports ctypes")
    ]
    assert len(SOURCES) > 100 and found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch.serialization import load",
        "def f():\n    import shelve",
        "importlib.import_module(name)",
        "np.load(file)",
        "np.lib.npyio.NpzFile(file, allow_pickle=True)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=wanted)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=config.trust)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert len(list(forbidden(source))) == 1
    assert not list(forbidden("subprocess.run(command, shell=False)\nmodel.eval()"))


def pickles(folder: Path, *names: str) -> None:
    for name in names:
        write(folder / name, pickle.dumps(Pickle()))


def test_no_pickle_is_opened_wherever_one_lies(good, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = Place(good)
    base, adapter, run = place.base(), place.adapter(), place.run()
    pickles(base, "pytorch_model.bin", "training_args.bin", "model.pt", "tokenizer.pkl")
    pickles(adapter, "adapter_model.bin", "optimizer.pt")
    pickles(run / "style" / "checkpoints", "0", "3.pkl")
    pickles(Path("rows"), "train.pkl", "train.npy", "train.bin")
    np.save("object.npy", np.array([Pickle()]), allow_pickle=True)
    np.savez("object.npz", np.array([Pickle()]))
    commands = [
        (train.main, place.train("--adapter", "adapter", "--dry-run")),
        (train.main, place.custom(None, path=Path("rows"))),
        *((train.main, place.custom(None, path=Path(f"object.{kind}"))) for kind in ("npy", "npz")),
        (eval_program.main, ["--predictions", "object.npy", "--run-dir", "new"]),
        (eval_program.main, ["--run", "run", "--predictions", "object.npz"]),
    ]
    for (main, argv), wanted in zip(commands, (2, 2, 2, 2, 2, 2), strict=True):
        assert run_main(main, argv) == wanted, argv
    # Beside whole files of another kind they are left alone; in their place they are refused.
    load_decoder(base, mesh=one_device())
    load_tokenizer(base)
    for file in (base / WEIGHTS, adapter / ADAPTER_WEIGHTS):
        pickles(file.parent, file.name)
    assert run_main(train.main, place.train()) == 2
    argv = ["--adapter", "adapter", "--model.path", "base", "--out", "merged"]
    assert run_main(merge.main, argv) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert not Path("pwned").exists()


def test_a_parquet_file_cannot_name_python_classes(tmp_path, monkeypatch):
    """Arrow once made objects of an extension type's metadata, which was a pickle."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Pickle()),
    }
    field = pyarrow.field("question", pyarrow.string(), metadata=metadata)
    table = pyarrow.table([["What?"]], schema=pyarrow.schema([field]))
    pyarrow.parquet.write_table(table, "rows.parquet")
    assert [row.content for row in read_file(Path("rows.parquet")).rows] == [{"question": "What?"}]
    assert not Path("pwned").exists()


def test_code_that_comes_with_a_model_is_not_run(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "open('pwned', 'w')\nclass Evil: pass\n"
    base = Place(good).base(auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.E"})
    for name in ("evil.py", "modeling_evil.py", "conftest.py", "__init__.py", "setup.py"):
        write(base / name, evil)
    load_decoder(base, mesh=one_device())
    load_tokenizer(base)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "..", "a/b", ""])
@pytest.mark.parametrize("file", ["eval.json", "comparison.json"])
def test_results_that_name_places_elsewhere_are_refused(tmp_path, name, file):
    """Pictures and predictions are files under the names of tasks and methods."""
    run = tmp_path / "run"
    write_config(run, "ls", "adaptive")
    metrics = write_evaluation(run, "world", *option_probs(20, 2.0, options=4))
    content = {name: metrics} if file == "eval.json" else {name: {"world": metrics}}
    (run / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{file}: .* outside"):
        read_run(run)


class Elements(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


DATA = ("data:image/svg+xml;base64,", "data:text/csv;charset=utf-8,")


def test_the_report_holds_no_element_that_data_wrote(tmp_path):
    """tests/browser sees the same in a real browser."""
    run = tmp_path / EVIL.replace("/", "")
    write_config(run, "ls", "adaptive")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f'{config}\nname: "{EVIL}"\n')
    probs, answers = option_probs(30, 2.0, options=4)
    write_evaluation(run, "world", probs, answers, prompt=EVIL, completions=[EVIL] * 4)
    results = json.loads((run / "eval.json").read_text())
    results["provenance"] |= {"command": EVIL, "device": f'" onload="{EVIL}'}
    results["world"]["by"] = {EVIL: {EVIL: dict(results["world"])}}
    (run / "eval.json").write_text(json.dumps(results))
    write_training(run, overconfidence=0.5)
    write_report(run)
    page = (run / "report.html").read_text()
    elements = Elements(page).found
    assert len(elements) > 50 and "&lt;script&gt;" in page
    assert {tag for tag, _ in elements}.isdisjoint({"iframe", "object", "embed", "form"})
    # The page's own script, which alone may run, and the questions, which are no script.
    *data, own = [attributes for tag, attributes in elements if tag == "script"]
    assert own == {} and data == [{"type": "application/json"}]
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[-1]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in elements if tag == "meta" and "http-equiv" in a]
    assert policy.endswith(f"; script-src 'sha256-{digest}'")
    for tag, attributes in elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "src"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", *DATA)) or ":" not in target


def test_tables_of_subgroups_that_data_names_leave_the_terminal_as_it_is(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    subjects = ("\x1b[2Jevil", "\x9b2J\u202elive")
    rows = [{"confidence": 0.7, "correct": n % 3 > 0, "subject": subjects[n % 2]} for n in range(9)]
    write(Path("p.jsonl"), rows)
    assert run_main(eval_program.main, ["--predictions", "p.jsonl", "--by", "subject"]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[2Jevil" in said and "\\x9b2J\\u202elive" in said
    assert all(line.isprintable() for line in said.splitlines())


def test_why_an_adapter_has_no_temperature_leaves_the_terminal_as_it_is(good, tmp_path, capsys):
    adapter = shutil.copytree(good / "adapter", tmp_path / "adapter")
    none = {"value": None, "why_none": "\x1b[2J\u202eevil", "rows": 40}
    write(adapter / "calibration.json", {"base": {"hash": "", "name": ""}, "temperature": none})
    assert predicting_calibrator(str(adapter), "mean") is None
    said = capsys.readouterr().err
    assert "\\x1b[2J\\u202eevil" in said and said.strip().isprintable()


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    """A run, its evaluation and its merge, by a person with a token, all below the home folder;
    and what the programs said."""
    home = tmp_path_factory.mktemp("home") / PERSON
    (home / "runs").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USER", PERSON)
        patch.setenv("LOGNAME", PERSON)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"):
            patch.setenv(name, TOKEN)
        base, run = write_base(home / "models" / "base"), home / "runs" / "one"
        quick = ["--training.epochs", "1", "--lora.lora-dropout", "0"]
        argv = arguments(base, run, "--method.name", "sft", *quick)
        jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time
        try:
            assert run_main(train.main, argv) == 0
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
        merged = ["--run", str(run), "--model.path", str(base), "--out", str(home / "merged")]
        assert run_main(merge.main, merged) == 0
    return home


# They say where files of this machine are, as checkpoints do, in order to find them again;
# SECURITY.md names them.
WITH_PATHS = ("config.yaml", "adapter_config.json")


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_token_or_the_name_of_its_user(private_run):
    files = [file for file in private_run.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    expected = {"command.txt", "report.html", "metrics.jsonl", "README.md", "eval.json"}
    assert expected | {"calibration.json", *WITH_PATHS} <= names
    for file in files:
        content = file.read_bytes()
        assert TOKEN.encode() not in content, file
        if file.name not in WITH_PATHS and "checkpoints" not in file.parts:
            assert PERSON.encode() not in content, file
    assert '"$HOME"' in (private_run / "runs" / "one" / "command.txt").read_text()


def test_commands_are_recorded_by_the_function_that_leaves_the_person_out():
    assert [file for file in SOURCES if "shlex.join" in file.read_text(encoding="utf-8")] == []


def test_a_token_is_not_repeated_in_what_the_hub_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    assert run_main(train.main, arguments(Path("owner/model"), Path("new"))) == 2
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err and "cannot be reached" in said.err


def test_a_header_does_not_decide_how_much_memory_is_taken(tmp_path):
    """A tensor of 2 to the 50 bytes that the file does not hold."""
    header = {"x": {"dtype": "F32", "shape": [2**24, 2**24], "data_offsets": [0, 2**50]}}
    text = json.dumps(header).encode()
    file = tmp_path / WEIGHTS
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_folder(tmp_path)
