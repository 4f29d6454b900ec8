"""The settings of a method, of anchors and of the loss, and the names of terms and gates.

A config, its help and a report know a method by its name: they need no JAX until a name is looked
up, which imports `terms` and `gates`. `Objective` (loss.py) is what the training step works with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cogcalib_jax.errors import FieldError, UserError, check, check_named
from cogcalib_jax.registry import Registry, split_outside, split_spec
from cogcalib_jax.settings import often, setting

if TYPE_CHECKING:
    from cogcalib_jax.method.gates import Gate
    from cogcalib_jax.method.loss import Anchor, Objective
    from cogcalib_jax.method.terms import Term

TERMS: Registry[Term] = Registry("term", module="cogcalib_jax.method.terms")
GATES: Registry[Gate] = Registry("gate", module="cogcalib_jax.method.gates")

T = TypeVar("T")
Space = Literal["vocab", "options"]
Reduction = Literal["mean", "sum"]

NONE = "none"
"""the word for no term"""
PLAIN = "sft"
"""the name of plain fine-tuning"""
GATED = "co"
"""before a term's name it means the adaptive gate, as in the paper's CoLS"""
ANCHOR_TERM = "kl"
"""the term that holds anchors unless another is named"""
NO_ANCHORS = ("style", "train", "calibration", "validation", "test")
"""splits of a run, whose questions are no anchors"""
PRIOR = "prior"
"""prior(E): label smoothing by E towards the start's belief"""


@dataclass(frozen=True)
class MethodConfig:
    """The calibration term and the gate that decides which examples it applies to."""

    name: str | None = often(None, role="methods", registry=TERMS)
    """short word for a term and a gate: sft, a term on all data (ls), or co and a term on known
    data (cols); unset: as term and gate say"""
    term: str | None = setting(None, role="methods", registry=TERMS)
    """calibration term, with settings if wanted, such as mbls(margin=5); none: no term"""
    gate: str | None = setting(None, role="methods", registry=GATES)
    """which examples the term applies to; adaptive: NLL at most the refitted threshold"""
    weight: float | None = often(None, role="weights")
    """weight of the term beside cross-entropy; unset means the term's own default"""
    space: Space = "vocab"
    """the classes the term sees: the whole vocabulary, or the question's options"""
    normalise: bool = False
    """divide each example's loss by one plus the weight it received"""
    margin: float | None = None
    """old way to write term mbls(margin=...), read in this release only"""
    reduction: Reduction | None = None
    """old way to write a term's setting, as in ls(reduction=sum), read in this release only"""

    def __post_init__(self) -> None:
        check_named(self)
        check(
            self.weight is None or 0 <= self.weight < math.inf,
            "weight",
            "must be a finite number of at least 0",
        )
        for old in ("margin", "reduction"):
            if self.term not in (None, NONE) and getattr(self, old) is not None:
                _made(old, TERMS.make, self._with_old_settings(self.term))
        if self.term not in (None, NONE):
            term = _made("term", TERMS.make, self.term)
            check(
                term.combine == "add" or (self.weight or 0) <= 1,
                "weight",
                f"must be at most 1 for term {self.term}, which replaces cross-entropy",
            )
        if self.gate is not None:
            _made("gate", GATES.make, self.gate)
        if self.name is None:
            return
        named = _made("name", parse_name, self.name)
        for field in ("term", "gate"):
            stated, meant = getattr(self, field), getattr(named, field)
            check(
                stated is None or _name_of(stated) == _name_of(meant),
                field,
                f"contradicts method.name {self.name}, which means {field} {meant} (drop one of"
                " them)",
            )

    @property
    def label(self) -> str:
        """The name of the method's folder in a comparison, such as cols or ls-unknown."""
        resolved = self.resolve()
        return method_label(_name_of(resolved.term), _name_of(resolved.gate))

    @property
    def full_label(self) -> str:
        """The same with the settings of term and gate that are not the default: focal-gamma=3."""
        resolved = self.resolve()
        return method_label(resolved.term, resolved.gate)

    def _with_old_settings(self, term: str) -> str:
        """Return the spec `term` with `margin` and `reduction`, where the term has such a setting
        and the spec does not state it."""
        name, stated = split_spec(term)
        known = {f.name for f in fields(TERMS[name].cls)} if name in TERMS else set()
        old = {"margin": self.margin, "reduction": self.reduction}
        for key in known & {old_name for old_name, value in old.items() if value is not None}:
            stated.setdefault(key, str(old[key]))
        return name + (f"({', '.join(f'{k}={v}' for k, v in stated.items())})" if stated else "")

    def within(self, shared: MethodConfig) -> MethodConfig:
        """Return this method, an entry of a comparison, with what the comparison's methods share.

        They share space, normalisation and the weight, unless the entry states one. A term that
        replaces cross-entropy keeps its own weight: a shared one is meant for terms beside it.
        """
        weight = self.weight
        if self.term == NONE:
            weight = None
        elif weight is None and TERMS.make(self.term).combine == "add":
            weight = shared.weight
        return replace(
            self,
            weight=weight,
            space=shared.space,
            normalise=self.normalise or shared.normalise,
            margin=shared.margin,
            reduction=shared.reduction,
        )

    def resolve(self) -> MethodConfig:
        """Return this method with every field spelled out.

        A config that names nothing is CoLS, the paper's strongest method on most of its tasks.
        """
        named = self if self.name is None else parse_name(self.name)
        term = self.term or named.term or "ls"
        gate = self.gate or named.gate or ("all" if term == NONE else "adaptive")
        weight = named.weight if self.weight is None else self.weight
        if term != NONE:
            made = TERMS.make(self._with_old_settings(term))
            term, default = TERMS.spec(made), made.default_weight
        else:
            default = 0.0
        return replace(
            self,
            term=term,
            gate=GATES.spec(GATES.make(gate)),
            weight=default if weight is None else weight,
            normalise=self.normalise or named.normalise,
            margin=None,
            reduction=None,
        )

    def build(self) -> Objective:
        """Return the method as the training step takes it."""
        # Imported here: it brings JAX, and a config is read without.
        from cogcalib_jax.method.loss import Objective

        resolved = self.resolve()
        return Objective(
            term=None if resolved.term == NONE else TERMS.make(resolved.term),
            gate=GATES.make(resolved.gate),
            weight=resolved.weight,
            space=resolved.space,
            normalise=resolved.normalise,
        )


def parse_name(name: str) -> MethodConfig:
    """Return what a method's short name stands for: sft, TERM, coTERM, prior(E) or coprior(E).

    TERM is a registered term with settings if wanted; it applies to all data, with "co" before it
    to known data. prior(E) is `kl` with weight E / (1 - E), normalised: (1 - E) CE + E H(start,
    model) but for the constant E H(start).

    Raises:
        UserError: no such name.
    """
    if name.strip() == PLAIN:
        return MethodConfig(term=NONE, gate="all")
    word = name.partition("(")[0].strip()
    gated = word.startswith(GATED) and word not in TERMS
    spec = name.strip().removeprefix(GATED) if gated else name.strip()
    gate = "adaptive" if gated else "all"
    if spec.partition("(")[0] == PRIOR:
        return MethodConfig(term="kl", gate=gate, weight=_prior_weight(spec), normalise=True)
    if spec.partition("(")[0].strip() not in TERMS:
        raise UserError(f"method is {name!r}; expected {names_text()}")
    return MethodConfig(term=spec, gate=gate)


def _prior_weight(spec: str) -> float:
    inside = spec.partition("(")[2].removesuffix(")").strip().removeprefix("e=")
    try:
        share = float(inside)
    except ValueError:
        share = math.nan
    if not (spec.endswith(")") and 0 < share < 1):
        raise UserError(f"method is {spec!r}; expected prior(E) with E between 0 and 1")
    return share / (1 - share)


def parse_entry(entry: str) -> MethodConfig:
    """Return the method of a comparison's entry, NAME or TERM@GATE, each with =WEIGHT if wanted
    (UserError: no such term, gate or name, or a weight that is no finite number of at least 0)."""
    name, *weight = split_outside(entry, "=")
    spec, *gate = split_outside(name, "@")
    if len(weight) > 1 or len(gate) > 1:
        raise UserError(f"method is {entry!r}; expected {names_text()}")
    if gate:
        method = MethodConfig(term=spec, gate=gate[0])
        if spec == NONE:
            raise UserError(f"method is {entry!r}; expected a term before @, none has no gate")
    else:
        method = parse_name(spec)
    if not weight:
        return method
    try:
        return replace(method, weight=float(weight[0]))
    except (ValueError, FieldError) as error:
        raise UserError(
            f"method is {entry!r}; expected a weight that is a finite number of at least 0"
        ) from error


def names_text() -> str:
    """Return the names that `parse_entry` takes, as messages and help state them."""
    return (
        f"{PLAIN}, a term ({', '.join(TERMS.names())}), {GATED} and a term, {PRIOR}(E), or"
        " TERM@GATE, each with =WEIGHT if wanted"
    )


def method_label(term: str, gate: str) -> str:
    """Return the folder name of a (term, gate) pair: sft, ls, cols, focal-gamma=3, ls-unknown."""
    if term == NONE:
        return PLAIN
    name, settings = split_spec(term)
    parts = [f"{key}={value}" for key, value in settings.items()]
    gate_name, gate_settings = split_spec(gate)
    if gate_name == "adaptive":
        name = GATED + name
    elif gate_name != "all":
        parts.append(gate_name)
        parts += [f"{key}={value}" for key, value in gate_settings.items()]
    return "-".join([name, *parts])


def split_label(label: str) -> tuple[str, str] | None:
    """Return the term and gate of a folder name that `method_label` gives; None for other words."""
    if label == PLAIN:
        return NONE, "all"
    word, *parts = label.split("-")
    gated = word not in TERMS and word.removeprefix(GATED) in TERMS
    term = word.removeprefix(GATED) if gated else word
    if term not in TERMS:
        return None
    gate = "adaptive" if gated else "all"
    found: dict[str, list[str]] = {"term": [], "gate": []}
    of = "term"
    for part in parts:
        if "=" in part:
            found[of].append(part)
        elif part in GATES and of == "term":
            gate, of = part, "gate"
        else:
            return None

    def spec(name: str, settings: list[str]) -> str:
        return f"{name}({', '.join(settings)})" if settings else name

    return spec(term, found["term"]), spec(gate, found["gate"])


def _name_of(spec: str) -> str:
    return spec.partition("(")[0].strip()


def _made(field: str, make: Callable[[str], T], spec: str) -> T:
    """Return `make(spec)`, a refusal being one of `field`."""
    try:
        return make(spec)
    except FieldError:
        raise
    except UserError as error:
        raise FieldError(field, str(error)) from error


@dataclass(frozen=True)
class LossConfig:
    """Cross-entropy, the NLL that is compared with the threshold, and "answers correctly"."""

    space: Space = "vocab"
    """classes of cross-entropy, of the gate's NLL and of the correctness rule"""
    tokens: Reduction = "mean"
    """how the answer's tokens make up one example: mean or sum"""
    correct: Literal["argmax", "exact_match"] = "argmax"
    """what the threshold calls right: argmax tokens or option; exact_match generates (open only)"""
    lm_weight: float = setting(0.0, added=True)
    """weight of the right option's NLL over the vocabulary, per token, beside cross-entropy over
    the options, which alone may make all options improbable (1: the loss of T-Few)"""

    def __post_init__(self) -> None:
        check_named(self)
        check(0 <= self.lm_weight < math.inf, "lm_weight", "must be a finite number of at least 0")
        check(
            self.lm_weight == 0 or self.space == "options",
            "lm_weight",
            "must be 0 where loss.space is vocab, whose cross-entropy is that NLL",
        )
        check(
            self.correct == "argmax" or self.space == "vocab",
            "correct",
            "must be argmax where loss.space is options: exact_match is for open questions",
        )


@dataclass(frozen=True)
class AnchorConfig:
    """Questions without answers, and the term that keeps the model near its start on them.

    A step adds `weight * mean term over its anchor rows` to its mean loss. The gate does not apply
    to anchors, because it needs answers.
    """

    path: str | None = setting(None, place=True)
    """file of questions with choices, as for eval.py --predict (answers are not read), asked with
    the run's own prompt; they replace those of world.anchor and facts.anchor; the term sees the
    classes of method.space"""
    carve: int | None = setting(None, added=True)
    """rows of train that become such questions, in a split of their own; a task that makes its rows
    has world.anchor or facts.anchor instead"""
    methods: tuple[str, ...] | None = setting(None, added=True)
    """folders of the methods of a comparison that use anchors; unset: all; []: none"""
    epochs: float | None = setting(None, added=True)
    """training.epochs of the methods with anchors; unset: as many as the others"""
    learning_rate: float | None = setting(None, added=True)
    """training.learning_rate of the methods with anchors; unset: that of the others"""
    rows_per_step: int = 8
    """questions per update, over all devices and micro-batches"""
    term: str = ANCHOR_TERM
    """term that needs no right answer, with settings if wanted, such as kl (the start's belief),
    uniform (for questions that nobody can answer) or mbls(margin=5)"""
    weight: float | None = None
    """weight of the mean term beside the mean loss; unset: the term's own default; 0 only measures
    it"""
    tempered: bool = setting(False, added=True)
    """hold to the start's belief at its own temperature, which is fitted to the calibration
    questions before fine-tuning; only for a term that compares with the start"""

    def __post_init__(self) -> None:
        check(self.rows_per_step >= 1, "rows_per_step", "must be an integer of at least 1")
        check(
            self.weight is None or 0 <= self.weight < math.inf,
            "weight",
            "must be a finite number of at least 0, or unset",
        )
        # The default is one, and names are looked up with JAX, which reading a config spares.
        if self.term != ANCHOR_TERM:
            term = _check_term(self.term)
            check(
                term.needs_start or not self.tempered,
                "tempered",
                f"must be false with term {self.term}, which does not compare with the start",
            )
        check(
            Path(self.path or "").name.partition(".")[0].casefold() not in NO_ANCHORS,
            "path",
            f"must name other questions than {', '.join(NO_ANCHORS)}: anchors share nothing with"
            f" them (got {self.path})",
        )
        check(
            self.epochs is None or 0 < self.epochs <= 1e6,
            "epochs",
            "must be a number above 0 and at most a million, or unset",
        )
        check(
            self.learning_rate is None or 0 < self.learning_rate <= 1e6,
            "learning_rate",
            "must be a number above 0 and at most a million, or unset",
        )
        check(self.carve is None or self.carve >= 1, "carve", "must be at least 1, or unset")
        check(
            None in (self.path, self.carve),
            "carve",
            "must be unset beside anchor.path, which names the questions",
        )

    @property
    def of_training(self) -> dict[str, float]:
        """Name -> value of the settings of training that the held methods have for themselves."""
        given = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        return {name: value for name, value in given.items() if value is not None}

    def changed(self) -> dict[str, Any]:
        """Return name -> default of the fields that say something about anchors."""
        return {
            field.name: field.default
            for field in fields(self)
            if field.name not in ("path", "carve", "methods")
            and getattr(self, field.name) != field.default
        }

    def build(self) -> Anchor:
        """Return the term and its weight as the training step takes them."""
        # Imported here: it brings JAX, and a config is read without.
        from cogcalib_jax.method.loss import Anchor

        term = TERMS.make(self.term)
        return Anchor(term, term.default_weight if self.weight is None else self.weight)


def _check_term(spec: str) -> Term:
    term = _made("term", TERMS.make, spec)
    allowed = ", ".join(entry.name for entry in TERMS if without_target(entry.cls))
    check(
        without_target(type(term)),
        "term",
        f"must be a term that needs no right answer (allowed: {allowed})",
    )
    return term


def without_target(term: type[Term]) -> bool:
    """Return whether a term can be computed for each row that has neither answer nor gate."""
    looks_elsewhere = term.needs_target or term.needs_gate or term.needs_classes
    return not looks_elsewhere and term.per == "row" and term.combine == "add"
