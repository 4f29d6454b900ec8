"""What is written is what was meant, for this reader and for others."""

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from cogcalib_jax.configlib.loading import from_yaml
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.settings import to_dict
from tests.configlib.example import Adapter, Config, Method, Model, load

WHOLE = st.integers(-(10**18), 10**18)
NUMBERS = st.floats(allow_nan=False)
# Any text, and above all the texts that YAML or a field's type could take for something else.
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=20
) | st.sampled_from(
    ["none", "null", "~", "true", "on", "1e-4", "3", ".inf", "nan", "[]", "a, b", "# x", "a: b", ""]
)
# Text that a command line can say anywhere, also in a list and for an optional field.
WORDS = st.from_regex(r"[a-z0-9][a-z0-9./_-]*", fullmatch=True).filter(
    lambda word: word not in ("none", "null")
)


def lists(items: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(items, max_size=4).map(tuple)


def configs(texts: st.SearchStrategy) -> st.SearchStrategy:
    adapters = st.builds(Adapter, st.integers(1, 99), NUMBERS, lists(texts))
    terms = st.sampled_from([None, "none", "ls", "ecp"])
    return st.builds(
        Config,
        name=texts,
        seed=WHOLE,
        resume=st.booleans(),
        run_dir=st.none() | texts.filter(bool).map(Path),
        compare=lists(texts),
        buckets=lists(WHOLE),
        betas=st.tuples(NUMBERS, NUMBERS),
        limit=WHOLE | st.just("auto"),
        devices=st.just(8),
        model=st.builds(Model, adapter=adapters, path=st.none() | texts),
        method=st.builds(Method, term=terms, weight=st.none() | st.floats(0, allow_nan=False)),
    )


@given(configs(TEXTS))
def test_a_written_config_reads_back_equal(config):
    assert from_yaml(Config, to_yaml(config), "p.yaml") == config


@given(configs(TEXTS))
def test_other_yaml_readers_see_the_same_values(config):
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)


@given(configs(WORDS))
def test_a_config_told_field_by_field_on_the_command_line_is_the_same(config):
    def tell(section: dict, prefix: str = "--") -> list[str]:
        told = []
        for name, value in section.items():
            if isinstance(value, dict):
                told += tell(value, f"{prefix}{name}.")
            elif isinstance(value, list):
                told.append(f"{prefix}{name}={','.join(map(str, value))}")
            else:
                told.append(f"{prefix}{name}={'null' if value is None else value}")
        return told

    assert load(*tell(to_dict(config))).config == config


def test_the_written_yaml_is_the_one_people_write():
    config = Config(compare=("sft", "cols"), model=Model(path="allenai/x-1"), betas=(0.9, 1e-5))
    assert to_yaml(config) == (
        "name: run\nseed: 0\nresume: false\nrun_dir: null\ncompare: [sft, cols]\n"
        "buckets: [32, 64]\nbetas: [0.9, 1.0e-05]\nlimit: auto\ndevices: 1\n"
        "model:\n  adapter:\n    rank: 4\n    scale: 1.0\n    targets: [q_proj, v_proj]\n"
        "  path: allenai/x-1\nmethod:\n  term: null\n  weight: null\n  resolved: ls\n"
    )
