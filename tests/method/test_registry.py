"""The registry: specs, what is refused, and its readers, all of which know a class added later."""

import contextlib
import subprocess
import sys
from dataclasses import dataclass

import jax
import pytest

from cogcalib_jax.cli import load
from cogcalib_jax.errors import UserError
from cogcalib_jax.method.config import MethodConfig, parse_entry
from cogcalib_jax.method.terms import TERMS, Term, register_term
from cogcalib_jax.registry import Registry, split_outside
from cogcalib_jax.report.text import long_name, short_name
from cogcalib_jax.studies.tune import TuneConfig
from tests.method.make_tables import DOCUMENTS, with_tables


@register_term("hinge", label="Hinge")
class Hinge(Term):
    """Mean over classes of relu(1 + z - z of the target)."""

    margin: float = 1.0
    sides: int = 2
    how: str = "mean"
    strict: bool = False

    def __call__(self, rows):
        gap = self.margin + rows.logits - rows.of_target(rows.logits)[..., None]
        return rows.reduce(jax.nn.relu(gap), self.how)


def test_a_spec_and_its_value_are_told_from_each_other():
    value = TERMS.make("hinge( margin = 2.5, sides=3, how=sum, strict=true)")
    assert value == Hinge(2.5, 3, "sum", True)
    assert TERMS.spec(value) == "hinge(margin=2.5, sides=3, how=sum, strict=true)"
    assert TERMS.make(TERMS.spec(value)) == value
    assert TERMS.spec(TERMS.make("hinge(margin=1)")) == "hinge"
    assert TERMS.make(value) is value
    long = TERMS.make("hinge(margin=0.12345678901)")
    assert TERMS.make(TERMS.spec(long)) == long


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hing", "did you mean hinge"),
        ("hinge(margin)", "'margin' is no setting; expected SETTING=VALUE"),
        ("hinge(margin=1, margin=2)", "expected SETTING=VALUE, each once"),
        ("hinge(margin=1", "is no spec"),
        ("hinge)margin=1(", "is no spec"),
        ("hinge(sides=2.5)", "sides is 2.5; expected a whole number"),
        ("hinge(strict=1)", "strict is 1; expected true or false"),
        ("hinge(margin=inf)", "expected a finite number"),
        ("hinge(width=1)", "hinge has no setting 'width'; expected margin=1.0, sides=2"),
    ],
)
def test_a_spec_that_means_nothing_is_refused_in_one_line(spec, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")) as found:
        TERMS.make(spec)
    assert "\n" not in str(found.value)


def test_only_classes_of_settings_are_registered_and_each_name_once():
    things: Registry = Registry("thing")

    @dataclass
    class Mutable:
        x: float = 1.0

    class Without:
        x: float

    class Unreadable:
        x: tuple = ()

    for cls in (Mutable, Without, Unreadable):
        with pytest.raises(ValueError, match="no class of settings"):
            things.register("one", label="One")(cls)
    with pytest.raises(ValueError, match="registered already"):
        TERMS.register("ls", label="LS")(Without)
    # A cell of a notebook that is run again defines its class anew.
    cells: Registry = Registry("cell")
    for _ in range(2):
        cell = type("Cell", (Term,), {"__module__": __name__, "__qualname__": "Cell"})
        assert cells.register("cell", label="Cell")(cell) is cells["cell"].cls is cell
    assert cells.register("cell", label="Cell")(cell) is cell
    with pytest.raises(ValueError, match="lower-case"):
        TERMS.register("My term", label="mine")
    with pytest.raises(UserError, match="register the class first"):
        TERMS.make(3.0)


def test_numbers_are_leaves_and_words_are_structure():
    leaves, structure = jax.tree.flatten(Hinge(3.0, 2))
    assert leaves == [3.0]
    assert jax.tree.structure(Hinge(9.0)) == structure
    assert jax.tree.structure(Hinge(3.0, how="sum")) != structure


def test_help_lists_the_same_names_before_jax_is_imported():
    code = """
import sys
from cogcalib_jax.method.config import GATES, TERMS
listed = TERMS.listed(), GATES.listed()
assert "jax" not in sys.modules
print(listed == (TERMS.names(), GATES.names()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_every_reader_knows_a_term_that_was_registered_later(capsys):
    with contextlib.suppress(SystemExit):
        load("train")(["--help-all"])
    assert "hinge" in capsys.readouterr().out
    assert MethodConfig(name="cohinge").resolve().gate == "adaptive"
    assert parse_entry("hinge(margin=2)@random=0.4").resolve().label == "hinge-random"
    assert TuneConfig(terms=("hinge(margin=2)", "ls")).terms[0] == "hinge(margin=2)"
    assert short_name("cohinge") == "Hinge on known data"
    assert short_name("hinge-margin=2-random") == "Hinge (margin 2) on a random share"
    assert "Hinge" in long_name("hinge")
    with pytest.raises(UserError, match="expected one of .*hinge"):
        MethodConfig(term="hnge")


def test_commas_within_parentheses_do_not_cut():
    assert split_outside("a(x=1, y=2),b,c(z=3)", ",") == ["a(x=1, y=2)", "b", "c(z=3)"]
    assert split_outside("'a' also=[x,y],'b'", ",") == ["'a' also=[x,y]", "'b'"]


def test_the_docs_hold_the_registries():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert with_tables(text) == text, "run python -m tests.method.make_tables"


def test_a_registry_of_fitted_values_holds_classes_that_keep_what_is_fitted():
    maps: Registry = Registry("map", fitted=True)

    @maps.register("shift", label="Shift")
    class Shift:
        """A shift."""

        most: float = 1.0

    value = maps.make("shift(most=2)")
    value.by_ = 0.5
    assert maps.spec(value) == "shift(most=2)" and maps.make(value) is value
    assert value != maps.make("shift(most=2)")

    @dataclass(frozen=True)
    class Frozen:
        most: float = 1.0

    with pytest.raises(ValueError, match="expected a dataclass that is not frozen"):
        maps.register("frozen", label="Frozen")(Frozen)
