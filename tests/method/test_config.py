"""Aliases expand to a term and a gate, contradictions are refused, defaults are per term."""

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.method.config import ALIASES, MethodConfig


@pytest.mark.parametrize("name", list(ALIASES))
def test_an_alias_means_its_term_and_gate(name):
    resolved = MethodConfig(name=name).resolve()
    assert (resolved.term, resolved.gate) == ALIASES[name]
    assert resolved.label == name
    assert resolved.resolve() == resolved


def test_a_contradiction_between_name_and_parts_is_an_error():
    with pytest.raises(UserError, match="contradicts method.name cols"):
        MethodConfig(name="cols", gate="all")
    with pytest.raises(UserError, match="contradicts method.name sft"):
        MethodConfig(name="sft", term="ls")
    assert MethodConfig(name="cols", term="ls", gate="adaptive").resolve().term == "ls"


def test_defaults_belong_to_the_term():
    """Over a large vocabulary a mean makes the entropy penalty vanish, so it sums."""
    assert MethodConfig(name="coecp").resolve().reduction == "sum"
    assert MethodConfig(name="cols").resolve().reduction == "mean"
    assert MethodConfig(name="combls").resolve().weight == 0.1
    assert MethodConfig(name="sft").resolve().weight == 0
    assert MethodConfig(name="cols", weight=0.0).resolve().weight == 0


def test_naming_nothing_is_cols_and_a_bare_gate_keeps_its_term():
    assert MethodConfig().resolve().label == "cols"
    assert MethodConfig(gate="unknown").resolve().label == "ls-unknown"
    assert MethodConfig(term="none").resolve().label == "sft"


@pytest.mark.parametrize("field,value", [("weight", -1.0), ("margin", -0.1)])
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        MethodConfig(**{field: value})
