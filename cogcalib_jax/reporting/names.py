"""What a method is called and how it looks: the same words and colours in every table and plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TERMS = {"ls": "LS", "mbls": "MbLS", "ecp": "ECP"}
GATES = {
    "all": "all data",
    "adaptive": "known data",
    "frozen_threshold": "known data, frozen threshold",
    "frozen_labels": "known data, frozen labels",
    "unknown": "unknown data",
    "random": "a random share",
    "frozen_random": "a fixed random share",
    "oracle": "known data, true labels",
}
DERIVED = {"temperature": " + temperature", "best_epoch": ", best epoch"}
# Plain fine-tuning answered by several models: (short name, name in the first column of a table).
SAMPLED = {
    "mc_dropout": ("MC-dropout", "SFT with MC-dropout"),
    "ensemble": ("Ensemble", "Deep ensemble of SFT"),
    "laplace_lora": ("Laplace-LoRA", "Laplace-LoRA around SFT"),
    "blob": ("BLoB", "BLoB: SFT with a distribution over A"),
}

# Okabe and Ito's palette, told apart with the common forms of colour blindness. Warm: nothing
# regularised. Cool: a term, pale on all data and strong on known data. Line styles repeat it.
_FIXED = {
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
}
_SPARE = ("#637939", "#843C39", "#17A2A2", "#B5A300", "#7B8FA6")


@dataclass(frozen=True)
class Look:
    """Colour and line of a method in plots."""

    color: str
    line: str


def method_key(term: str, gate: str) -> str:
    """The word for a (term, gate) pair, the folder name of a method in a comparison."""
    if term == "none":
        return "sft"
    if gate == "all":
        return term
    return f"co{term}" if gate == "adaptive" else f"{term}-{gate}"


def split_key(key: str) -> tuple[str, str, str]:
    """(term, gate, derivation) of a method key; all empty for a word that is none of ours."""
    for derivation in DERIVED:
        if key.endswith(f"_{derivation}"):
            term, gate, _ = split_key(key.removesuffix(f"_{derivation}"))
            return term, gate, derivation if term else ""
    if key == "sft":
        return "none", "all", ""
    for term in TERMS:
        for gate in GATES:
            if key == method_key(term, gate):
                return term, gate, ""
    return "", "", ""


def is_ours(key: str) -> bool:
    """Whether the method gates its term on known data and is nothing derived from such a run."""
    _, gate, derivation = split_key(key)
    return gate == "adaptive" and not derivation


def short_name(key: str) -> str:
    """Name for legends and sentences: "CoLS", "LS on all data", "SFT + temperature"."""
    if key in SAMPLED:
        return SAMPLED[key][0]
    term, gate, derivation = split_key(key)
    if not term:
        return key
    if term == "none":
        name = "SFT"
    elif gate == "adaptive":
        name = f"Co{TERMS[term]}"
    else:
        name = f"{TERMS[term]} on {GATES[gate]}"
    return name + DERIVED.get(derivation, "")


def long_name(key: str) -> str:
    """Name for the first column of a table: says what ours is."""
    if key in SAMPLED:
        return SAMPLED[key][1]
    term, _, derivation = split_key(key)
    if is_ours(key):
        return f"{short_name(key)} (ours: {TERMS[term]} on known data)"
    if derivation == "best_epoch":
        return f"{short_name(key.removesuffix('_best_epoch'))}, best validation epoch"
    return short_name(key)


def looks(keys: Iterable[str]) -> dict[str, Look]:
    """A look per method: fixed for the usual ones, the rest take spare colours in order."""
    chosen: dict[str, Look] = {}
    spare = 0
    for key in keys:
        if key in _FIXED:
            chosen[key] = Look(*_FIXED[key])
        else:
            chosen[key] = Look(_SPARE[spare % len(_SPARE)], ("-", "--", "-.", ":")[spare // 5 % 4])
            spare += 1
    return chosen
