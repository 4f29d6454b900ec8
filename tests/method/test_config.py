"""Aliases expand to a term and a gate, contradictions are refused, defaults are per term."""

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.method.config import MethodConfig, parse_entry, split_label
from cogcalib_jax.method.terms import TERMS
from tests.method.registered import own_names

NAMES = {"sft": ("none", "all")} | {
    prefix + name: (name, gate)
    for name in own_names(TERMS)
    for prefix, gate in (("", "all"), ("co", "adaptive"))
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_its_term_and_gate(name):
    resolved = MethodConfig(name=name).resolve()
    assert (resolved.term, resolved.gate) == NAMES[name]
    assert resolved.label == name
    assert resolved.resolve() == resolved
    assert split_label(name) == NAMES[name]


def test_a_spec_carries_settings_of_term_and_gate():
    method = parse_entry("mbls(margin=5)@soft(width=0.2)=0.3").resolve()
    assert (method.term, method.gate, method.weight) == ("mbls(margin=5)", "soft(width=0.2)", 0.3)
    assert method.label == "mbls-soft"
    assert method.full_label == "mbls-margin=5-soft-width=0.2"
    assert split_label(method.full_label) == (method.term, method.gate)
    built = method.build()
    assert (built.term.margin, built.gate.width, built.weight) == (5.0, 0.2, 0.3)
    assert MethodConfig(term="mbls(margin=10.0)").resolve().term == "mbls"


def test_a_prior_is_kl_to_the_start_with_the_weight_that_makes_it_smoothing():
    method = MethodConfig(name="coprior(0.25)").resolve()
    assert (method.term, method.gate, method.normalise) == ("kl", "adaptive", True)
    assert method.weight == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="E between 0 and 1"):
        MethodConfig(name="prior(1)")


def test_a_term_in_place_of_cross_entropy_keeps_its_own_weight_in_a_comparison():
    """A shared weight is tuned for terms beside cross-entropy; at most 1 of it can be replaced."""
    shared = MethodConfig(weight=0.5, space="options")
    assert parse_entry("focal").within(shared).resolve().weight == 1.0
    assert parse_entry("focal=0.4").within(shared).resolve().weight == 0.4
    assert parse_entry("ls").within(shared).resolve().weight == 0.5
    assert parse_entry("sft").within(shared).resolve().weight == 0.0
    with pytest.raises(UserError, match="at most 1"):
        MethodConfig(term="focal", weight=1.5)


def test_old_fields_of_a_term_are_read_as_its_settings():
    assert MethodConfig(name="combls", margin=2.0).resolve().term == "mbls(margin=2)"
    assert MethodConfig(name="ls", margin=2.0).resolve().term == "ls"
    assert MethodConfig(term="ls", reduction="sum").resolve().term == "ls(reduction=sum)"
    assert MethodConfig(term="mbls(margin=3)", margin=2.0).resolve().term == "mbls(margin=3)"
    shared = MethodConfig(margin=2.0)
    assert parse_entry("combls").within(shared).resolve().term == "mbls(margin=2)"


def test_a_contradiction_between_name_and_parts_is_an_error():
    with pytest.raises(UserError, match="contradicts method.name cols"):
        MethodConfig(name="cols", gate="all")
    with pytest.raises(UserError, match="contradicts method.name sft"):
        MethodConfig(name="sft", term="ls")
    assert MethodConfig(name="cols", term="ls", gate="adaptive").resolve().term == "ls"


def test_defaults_belong_to_the_term():
    """Over a large vocabulary a mean makes the entropy penalty vanish, so it sums."""
    assert MethodConfig(name="coecp").build().term.reduction == "sum"
    assert MethodConfig(name="cols").build().term.reduction == "mean"
    assert MethodConfig(name="combls").resolve().weight == 0.1
    assert MethodConfig(name="sft").resolve().weight == 0
    assert MethodConfig(name="cols", weight=0.0).resolve().weight == 0


def test_naming_nothing_is_cols_and_a_bare_gate_keeps_its_term():
    assert MethodConfig().resolve().label == "cols"
    assert MethodConfig(gate="unknown").resolve().label == "ls-unknown"
    assert MethodConfig(term="none").resolve().label == "sft"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"weight": -1.0}, "weight: must be a finite number"),
        ({"term": "mbls", "margin": -0.1}, "margin is -0.1; expected a number of at least 0"),
        ({"term": "mbls(margin=-1)"}, "margin is -1; expected a number of at least 0"),
        ({"term": "mbls(margin=x)"}, "margin is x; expected a finite number"),
        ({"term": "lss"}, "term is 'lss'; expected one of ls, mbls, .* did you mean ls"),
        ({"term": "ls(margin=2)"}, "ls has no setting 'margin'; expected reduction=mean"),
        ({"term": "ecp(reduction=median)"}, "reduction is median; expected mean or sum"),
        ({"gate": "soft(width=0)"}, "width is 0; expected a number above 0"),
        ({"gate": "all(width=1)"}, "it has no settings"),
        ({"name": "colz"}, "method is 'colz'; expected sft, a term"),
        ({"term": "ls(("}, "is no spec"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        MethodConfig(**fields)
