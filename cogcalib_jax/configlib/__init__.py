"""Strict YAML presets and dotted command-line overrides onto nested frozen dataclasses.

Knows no field of any room. A plain scalar of a preset and a word of the command line are the same
thing here: text that the field's type gives its meaning to. So `1e-4` is a number where a number
is wanted, `on` stays a word where text is wanted, and both sources are told the same errors in
the same words: source, dotted field, the value, and what is allowed.

    values.py        text and the types of fields
    fields.py        what a config dataclass tells about itself, and what its checks raise
    presets.py       YAML in and out
    command_line.py  `--section.field value`
    loading.py       both laid over the defaults and built once
    renamed.py       fields with a new name
    identity.py      what two runs must have in common
    help.py          `--help`
    recorded.py      commands in files that travel
"""

from cogcalib_jax.configlib.fields import FieldError, check, field_docs, often, setting
from cogcalib_jax.configlib.identity import (
    identity,
    marked_paths,
    places,
    retire,
    style_identity,
    with_places_of,
    without_retired,
)
from cogcalib_jax.configlib.loading import Loaded, from_yaml, given_values, load_config
from cogcalib_jax.configlib.presets import to_dict, to_yaml
from cogcalib_jax.configlib.recorded import command_line, program_words, without_person
from cogcalib_jax.configlib.renamed import rename, with_new_names

__all__ = [
    "FieldError",
    "Loaded",
    "check",
    "command_line",
    "field_docs",
    "from_yaml",
    "given_values",
    "identity",
    "load_config",
    "marked_paths",
    "often",
    "places",
    "program_words",
    "rename",
    "retire",
    "setting",
    "style_identity",
    "to_dict",
    "to_yaml",
    "with_new_names",
    "with_places_of",
    "without_person",
    "without_retired",
]
