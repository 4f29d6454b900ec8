"""The name, colour and line of a method: the same in every table and figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cogcalib_jax.baselines.registry import split_folder
from cogcalib_jax.method.config import GATES, TERMS, split_label
from cogcalib_jax.registry import Registry, split_spec

# The longest first: the ending of a key is looked up in this order.
DERIVED = {
    "best_epoch_temperature": ", best epoch + temperature",
    "temperature": " + temperature",
    "best_epoch": ", best epoch",
}
# Every method must beat these; they are not trained.
BASE, COMMONEST = "base", "commonest_answer"
REFERENCES = {
    BASE: ("Base", "the model as it was given, before style adaptation"),
    COMMONEST: (
        "Commonest answer",
        "the frequencies of right answers among the fine-tuning rows",
    ),
}

# Okabe and Ito's palette, told apart with the common forms of colour blindness. Warm: nothing
# regularised. Cool: a term, pale on all data and strong on known data. Line styles repeat it.
_FIXED = {
    BASE: ("#9C9C9C", "-"),
    COMMONEST: ("#C9C9C9", ":"),
    "sft": ("#D55E00", "-"),
    "sft_best_epoch": ("#E69F00", "--"),
    "sft_temperature": ("#CC79A7", "-."),
    "ls": ("#56B4E9", "--"),
    "cols": ("#0072B2", "-"),
    "mbls": ("#7FCDB4", "--"),
    "combls": ("#009E73", "-"),
    "ecp": ("#A9A9A9", "--"),
    "coecp": ("#333333", "-"),
    "mc_dropout": ("#A6761D", ":"),
    "ensemble": ("#6A3D9A", ":"),
    "laplace_lora": ("#8B1A1A", "-."),
    "blob": ("#1B3A6B", ":"),
    "tfb": ("#2E8B8B", "-."),
    "ivon": ("#B5446E", ":"),
    "scalabl": ("#4C6FA5", "-."),
    "ib_edl": ("#8C6D31", "--"),
    "start": ("#6B6B6B", "--"),
    "interpolation": ("#117A65", "-."),
}
_SPARE = ("#637939", "#843C39", "#17A2A2", "#B5A300", "#7B8FA6")


@dataclass(frozen=True)
class Look:
    """The colour and line of a method in plots."""

    color: str
    line: str


def split_key(key: str) -> tuple[str, str, str]:
    """Return the (term, gate, derivation) of a method's folder name, as specs such as
    "mbls(margin=5)"; all empty for a word that names no method."""
    for derivation in DERIVED:
        if key.endswith(f"_{derivation}"):
            term, gate, _ = split_key(key.removesuffix(f"_{derivation}"))
            return term, gate, derivation if term else ""
    term, gate = split_label(key) or ("", "")
    return term, gate, ""


def term_label(term: str) -> str:
    """Return the name of a term in tables, with its settings: "MbLS", "Focal (gamma 3)"."""
    return _labelled(TERMS, term)


def gate_label(gate: str) -> str:
    """Return what a gate applies the term to: "known data"."""
    return _labelled(GATES, gate)


def _labelled(registry: Registry, spec: str) -> str:
    name, settings = split_spec(spec)
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    return registry[name].label + (f" ({words})" if words else "")


def tempered(key: str) -> str:
    """Return the key of the row that has the scores of `key` with its fitted temperature."""
    return f"{key}_temperature"


def is_tempered(key: str) -> bool:
    """Return whether the row has the scores of another one with a temperature."""
    return split_key(key)[2].endswith("temperature")


def best_epoch_of(key: str) -> str:
    """Return the key of the row that stopped `key` at its best validation epoch."""
    return f"{key}_best_epoch"


def is_gated(key: str) -> bool:
    """Return whether the method applies its term to known data alone, as CogCalib does (Wang et al.
    2025), and is nothing derived from such a run."""
    _, gate, derivation = split_key(key)
    return gate == "adaptive" and not derivation


def is_sampled(key: str) -> bool:
    """Return whether the row is a baseline: made from plain fine-tuning, with answers of its
    own."""
    return split_folder(key) is not None


def costs_more(key: str) -> bool:
    """Return whether the row is a baseline with several passes for an answer."""
    found = split_folder(key)
    return found is not None and not found[0].cls.one_pass


def short_name(key: str) -> str:
    """Return the name in tables and sentences: "CoLS", "LS on all data", "SFT + temperature"."""
    if key in REFERENCES:
        return REFERENCES[key][0]
    if (found := split_folder(key)) is not None:
        entry, settings = found
        return entry.label + (f" ({settings.replace('=', ' ')})" if settings else "")
    term, gate, derivation = split_key(key)
    if not term:
        return key
    if term == "none":
        name = "SFT"
    elif gate == "adaptive":
        name = f"Co{term_label(term)}"
    else:
        name = f"{term_label(term)} on {gate_label(gate)}"
    return name + DERIVED.get(derivation, "")


def long_name(key: str) -> str:
    """Return the short name, with a description and source if it needs them."""
    if key in REFERENCES:
        return f"{short_name(key)} ({REFERENCES[key][1]})"
    if (found := split_folder(key)) is not None:
        return f"{short_name(key)} ({found[0].facts['what']})"
    if is_gated(key):
        facts = TERMS[split_spec(split_key(key)[0])[0]].facts
        if "cogcalib" in facts:
            return f"{short_name(key)} ({facts['cogcalib']} on known data, Wang et al. 2025)"
        return f"{short_name(key)} ({term_label(split_key(key)[0])} on known data)"
    return short_name(key).replace(DERIVED["best_epoch"], ", best validation epoch")


def credits(keys: Iterable[str]) -> list[str]:
    """Return the long names of those rows whose short name needs more words."""
    return [long_name(key) for key in keys if long_name(key).startswith(f"{short_name(key)} (")]


def looks(keys: Iterable[str]) -> dict[str, Look]:
    """Return a look per method: usual ones have theirs, the rest take spare colours in order."""
    chosen: dict[str, Look] = {}
    spare = 0
    for key in keys:
        if key in _FIXED:
            chosen[key] = Look(*_FIXED[key])
        else:
            chosen[key] = Look(_SPARE[spare % len(_SPARE)], ("-", "--", "-.", ":")[spare // 5 % 4])
            spare += 1
    return chosen
