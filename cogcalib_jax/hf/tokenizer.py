"""The tokenizer of a model, and of an adapter that brings files of its own.

PEFT trainers save the tokenizer beside the adapter, often with another chat template. It is used
only if it gives the base's ids, since these select the rows of the base's embedding.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cogcalib_jax.console import show_note
from cogcalib_jax.errors import DAMAGED, UserError
from cogcalib_jax.files import is_plain_name, read_object, reason_of
from cogcalib_jax.hf.files import model_folder
from cogcalib_jax.hf.weights import read_config

CHAT_TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
# An entry that transformers writes and never opens.
LEFTOVER = "special_tokens_map_file"
# Any of these makes a tokenizer.
TOKENIZER_FILES = (SETTINGS, "tokenizer.json", "vocab.json", "tokenizer.model", "tekken.json")
# All files of a tokenizer; a merge copies them.
PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template*",
)
WITHOUT_EMBEDDING = "without_embedding"
"""attribute of a tokenizer: its tokens whose ids the model's embedding does not have"""
# Texts that tokenizers of one vocabulary may cut in different ways: spaces, lines, digits, cases,
# apostrophes, scripts, and letters that normal forms change.
_PROBES = (
    "Question: Which is it?\nA. red\nB. blue\nAnswer: A",
    " a  b   c\n\n\td ",
    "It's 3.14159 or 1,000,000 m² at 5°C; don't SHOUT.",
    "naïve e\u0301 ﬁ 東京は何? Привет שלום 🙂",
    "def f(x):\n    return x ** 2  # {letter}",
)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder or a Hub id; code from the Hub never runs.

    Raises:
        UserError: files that are missing, damaged, out of reach, need code of their own, or name
            files outside their folder.
    """
    folder = model_folder(source, weights=False)
    settings = folder / SETTINGS
    if settings.is_file():
        _require_own_files(settings)
    try:
        # By its folder, even for a Hub id, so that transformers fetches nothing.
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        tokenizer("a")  # some settings are first read here
    except Exception as error:
        # The tokenizers library raises a bare `Exception` for a damaged file; others are bugs.
        known = (*DAMAGED, OSError, ImportError, StrictDataclassError)
        if type(error) is not Exception and not isinstance(error, known):
            raise
        raise UserError(_why_not_loaded(folder, error)) from error
    # Without the file of the vocabulary, transformers 5 may make a tokenizer that has its special
    # tokens and nothing else.
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.added_tokens_decoder):
        raise UserError(_without_vocabulary(Path(source)))
    tokenizer.name_or_path = str(source)
    return tokenizer


def _require_own_files(settings: Path) -> None:
    """Refuse a tokenizer_config.json that names files outside its folder, which transformers would
    open."""
    for key, value in read_object(settings, "").items():
        if _leads_out(key, value):
            raise UserError(
                f"{settings}: {key} may name files outside its folder ({value!r:.80}). Files"
                " outside a downloaded folder are not read; remove that entry"
            )


def _leads_out(key: str, value: Any) -> bool:
    if key in ("vocab", "merges"):
        return isinstance(value, str)  # a path, from the working directory
    if key == "init_inputs":
        return bool(value)  # the first of them are vocab and merges
    if not key.endswith(("_file", "_files")) or key == LEFTOVER:
        return False
    names = value if isinstance(value, list | dict) else [value]
    return not all(is_plain_name(name) for name in names if isinstance(name, str))


def _without_vocabulary(source: Path) -> str:
    present = any((source / name).is_file() for name in TOKENIZER_FILES)
    holds = "its tokenizer has no vocabulary" if present else "holds no tokenizer"
    return f"{source}: {holds}; copy tokenizer.json and tokenizer_config.json there"


def _why_not_loaded(source: Path, error: Exception) -> str:
    """The message for a tokenizer that transformers cannot load; damaged JSON raises UserError."""
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if source.is_dir() and not present:
        return _without_vocabulary(source)
    for name in present:
        if name.endswith(".json"):
            read_object(source / name, "")
    if "custom code" in str(error):
        return (
            f"{source}: its tokenizer needs its own Python code, which is never run; use a model"
            " whose tokenizer.json transformers can read without it"
        )
    return (
        f"{source}: cannot load a tokenizer ({reason_of(error)}); fetch tokenizer.json and"
        " tokenizer_config.json again, or name another model"
    )


def load_base_tokenizer(
    base: str | Path, adapter: str | Path | None = None, note: Callable[[str], None] = show_note
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base, or of an adapter on it that has its own.

    Args:
        note: receives what the adapter's tokenizer changes.

    Raises:
        UserError: a tokenizer that contradicts the base's, or ids without a row in the embedding,
            for which JAX would read the last row.
    """
    # Before the tokenizer, since transformers reads config.json too, with poorer messages.
    rows = read_config(base).vocab_size
    tokenizer = load_tokenizer(base)
    _require_rows(base, tokenizer, rows)
    if adapter is None:
        return tokenizer
    own, notes = own_tokenizer(base, adapter, tokenizer, rows)
    for text in notes:
        note(text)
    return own


def _require_rows(base: str | Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse ids beyond the embedding, except for special tokens that no prompt holds: many bases
    were given a padding token that way."""
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    roles = {str(tokenizer.bos_token), str(tokenizer.eos_token), str(tokenizer.unk_token)}
    chat = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    used = [token for token in beyond if token not in special or token in roles or token in chat]
    if used or max(tokenizer("a")["input_ids"], default=0) >= rows:
        largest = max(beyond.values())
        raise UserError(
            f"{base}: its tokenizer has ids up to {largest:,}, its embedding {rows:,} rows; use the"
            " tokenizer that belongs to these weights"
        )
    setattr(tokenizer, WITHOUT_EMBEDDING, frozenset(beyond))  # a question with one is refused


def own_tokenizer(
    base: str | Path, adapter: str | Path, theirs: PreTrainedTokenizerBase, rows: int
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Return the tokenizer of `adapter` on `base`, and notes on what it changes.

    Args:
        rows: number of rows of the base's embedding.

    Raises:
        UserError: a tokenizer that cannot be loaded, gives other ids than the base's, or has ids
            that the embedding does not have.
    """
    folder = Path(adapter)
    if not tokenizer_key(base, adapter):
        return theirs, ()
    base_folder = model_folder(base, weights=False)
    with tempfile.TemporaryDirectory() as place:
        for name, path in combined_files(base_folder, folder).items():
            shutil.copyfile(path, Path(place) / name)
        # Without a tokenizer_config.json the kind of tokenizer follows from the kind of model.
        shutil.copyfile(base_folder / "config.json", Path(place) / "config.json")
        try:
            own = load_tokenizer(place)
        except UserError as error:
            raise UserError(str(error).replace(place, str(folder))) from error
    own.name_or_path = str(folder)
    _require_same_ids(folder, own, theirs, rows)
    setattr(own, WITHOUT_EMBEDDING, getattr(theirs, WITHOUT_EMBEDDING, frozenset()))
    notes = []
    if own.chat_template != theirs.chat_template:
        notes.append(f"the chat template is that of the adapter ({adapter}), not the base's")
    if _ids(own, "a", special=True) != _ids(theirs, "a", special=True):
        notes.append(
            f"the special tokens around a text are those of the adapter's tokenizer ({adapter}),"
            " not the base's"
        )
    return own, tuple(notes)


def _require_same_ids(
    adapter: Path, own: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, rows: int
) -> None:
    ours, base = own.get_vocab(), theirs.get_vocab()
    added = {str(t) for tokenizer in (own, theirs) for t in tokenizer.added_tokens_decoder.values()}
    for token in sorted(ours.keys() | base.keys()):
        one, other = ours.get(token), base.get(token)
        if one != other and not (token in added and None in (one, other)):
            raise _contradiction(adapter, f"token {token!r} has the id {one}, the base's {other}")
    beyond = {i: token for token, i in ours.items() if i >= rows and token not in base}
    if beyond:
        raise UserError(
            f"{adapter}: its tokenizer adds {beyond[max(beyond)]!r} with the id {max(beyond):,};"
            f" expected an id below {rows:,}, the rows of the base's embedding. Use the base with"
            " the larger embedding that it was trained on"
        )
    for text in _PROBES:
        if _ids(own, text) != _ids(theirs, text):
            raise _contradiction(adapter, f"it cuts {text!r} into other tokens")


def _contradiction(adapter: Path, what: str) -> UserError:
    return UserError(
        f"{adapter}: its tokenizer contradicts the base's ({what}); use its own base, or remove the"
        " tokenizer's files from the adapter's folder"
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=special)["input_ids"]


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that make up a tokenizer, by name."""
    found = (path for pattern in PATTERNS for path in folder.glob(pattern))
    return {path.name: path for path in sorted(found) if path.is_file()}


def combined_files(base: Path, adapter: Path) -> dict[str, Path]:
    """Return the tokenizer files of a base with an adapter, by name; the adapter's replace
    the base's."""
    files, own = tokenizer_files(base), tokenizer_files(adapter)
    in_settings = SETTINGS in own and "chat_template" in read_object(own[SETTINGS], "")
    if in_settings and CHAT_TEMPLATE not in own:
        files.pop(CHAT_TEMPLATE, None)  # transformers would prefer it to the adapter's entry
    return files | own


def copy_tokenizer(base: str | Path, start: str | Path | None, adapter: Path) -> None:
    """Copy the tokenizer that an adapter was trained with, that of `start` where it began with one,
    into the adapter's folder."""
    folder = model_folder(base, weights=False)
    files = tokenizer_files(folder) if start is None else combined_files(folder, Path(start))
    for name, file in files.items():
        shutil.copyfile(file, adapter / name)


def tokenizer_key(base: str | Path, adapter: str | Path | None) -> str:
    """Return a hash of the adapter's tokenizer files; "" if they are the base's own."""
    own = {} if adapter is None else tokenizer_files(Path(adapter))
    if not own:
        return ""
    theirs = tokenizer_files(model_folder(base, weights=False))
    contents = {name: path.read_bytes() for name, path in sorted(own.items())}
    changed = {
        name: data
        for name, data in contents.items()
        if name not in theirs or theirs[name].read_bytes() != data
    }
    digest = hashlib.sha256()
    for name, data in changed.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest() if changed else ""
