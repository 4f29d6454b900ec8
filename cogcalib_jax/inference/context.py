"""The check that texts fit into the context of a model."""

from __future__ import annotations

from collections.abc import Iterable

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError


def check_context(context: int, sets: Iterable[EncodedSplit], new_tokens: int) -> tuple[str, ...]:
    """Refuse answers that do not fit into the context, and return notes on texts beyond it.

    Options beyond the context get numbers like all others, which are worth little: a note says so.
    An answer to an open question would have to be generated there: that is refused.

    Args:
        context: tokens that the model was made for (`max_position_embeddings`).
        sets: the questions. Without any, nothing is refused.
        new_tokens: most tokens of a generated answer.

    Raises:
        UserError: a prompt of an open question and its answer exceed the context.
    """
    sets = [rows for rows in sets if rows]
    prompts = [len(row.prompt_ids) for rows in sets if rows.is_open for row in rows]
    if prompts and max(prompts) + new_tokens > context:
        room = context - new_tokens
        shorter = f"set --data.max-length to at most {room}, which cuts long passages, or "
        raise UserError(
            f"open questions: the longest prompt of {max(prompts)} tokens and an answer of up to"
            f" {new_tokens} (evaluation.open.max_new_tokens) exceed the model's context of"
            f" {context}; {shorter if room > 0 else ''}lower --evaluation.open.max-new-tokens"
        )
    longest = max((int(rows.lengths.max()) for rows in sets), default=0)
    if longest <= context:
        return ()
    return (
        f"texts of up to {longest:,} tokens are longer than the model's context of"
        f" {context:,}, beyond which it was not trained; set --data.max-length {context}",
    )
