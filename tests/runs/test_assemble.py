"""What a run is put together from fits together, or is refused before any weight is read."""

import json

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.runs.assemble import load_base_tokenizer
from tests.examples.scored import write_tokenizer
from tests.golden.families import FAMILIES


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, True), (-1, False)])
def test_a_tokenizer_larger_than_the_embedding_is_refused(more, fits, tmp_path):
    rows = write_tokenizer(tmp_path).get_vocab_size() + more
    config = FAMILIES["llama3"] | {"vocab_size": rows}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if fits:
        assert len(load_base_tokenizer(tmp_path)) == rows - more
        return
    with pytest.raises(UserError, match=rf"ids up to {rows:,}, its embedding {rows:,} rows"):
        load_base_tokenizer(tmp_path)
