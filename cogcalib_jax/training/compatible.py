"""The refusal of models, rows, methods, losses and devices that do not fit together.

Nothing here needs a folder, a weight or a config of a whole run. Whoever trains asks before
anything slow: `check_mesh` before a base is built or rows are read, `check_compatible` before
weights are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from jax.sharding import Mesh

from cogcalib_jax.data.example import EncodedSplit, require_shared_options
from cogcalib_jax.errors import UserError, any_of
from cogcalib_jax.inference.config import WITHOUT_PRIOR, EvaluationConfig
from cogcalib_jax.method.config import GATES, AnchorConfig, LossConfig, MethodConfig
from cogcalib_jax.sharding import require_even
from cogcalib_jax.training.config import CompositionConfig, TrainingConfig, known_to_the_world


def check_mesh(
    mesh: Mesh,
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    anchor: AnchorConfig | None = None,
) -> None:
    """Refuse batches that the devices of `mesh` cannot share evenly (UserError)."""
    micro_batch = training.batch_size // training.accumulation
    require_even("training.batch_size / training.accumulation", micro_batch, mesh)
    if anchor is not None:
        anchors = anchor.rows_per_step // training.accumulation
        require_even("anchor.rows_per_step / training.accumulation", anchors, mesh)
    require_even("evaluation.batch_size", evaluation.batch_size, mesh)


def check_compatible(
    splits: Mapping[str, EncodedSplit],
    methods: Iterable[MethodConfig],
    loss: LossConfig,
    *,
    data_name: str,
    option_score: str = "mean",
    averaged: Collection[str] = (),
    sets: Mapping[str, EncodedSplit] | None = None,
    composition: CompositionConfig | None = None,
    context: int | None = None,
    new_tokens: int = 0,
) -> tuple[str, ...]:
    """Refuse what cannot be trained together, and return notes for the user.

    Args:
        splits: name -> encoded rows; `train` is among them.
        data_name: what messages call the rows, usually the name of the task.
        option_score: the rule by which options are scored, or auto.
        averaged: names of the baselines that average the probabilities of options.
        sets: name -> encoded questions that are answered in the end.
        composition: which of the fine-tuning rows are used; None: all of them.
        context: tokens that the model was made for; None: the model is not known yet.
        new_tokens: most tokens of a generated answer.

    Raises:
        UserError: the first of them that does not fit the others.
    """
    methods, sets, train = tuple(methods), sets or {}, splits["train"]
    _require_options_space(splits, methods, loss, data_name, option_score)
    if option_score == "auto" and any(rows.is_open for rows in splits.values()):
        raise UserError(
            f"option_score = auto: questions of {data_name} are open and have no options; leave it"
            " out"
        )
    _require_shared_classes(train, methods, data_name)
    _require_known_rows(train, methods, composition, data_name)
    for name, rows in sets.items():
        if rows and rows.is_open != train.is_open:
            raise UserError(
                f"also = {name}: only one of it and {data_name} has open questions, which are"
                " answered in another way; evaluate it with eval.py --run"
            )
    if loss.correct == "exact_match" and not train.is_open:
        raise UserError(
            f"loss.correct = exact_match: questions of {data_name} have options; use argmax"
        )
    if train.is_open and averaged:
        raise UserError(
            f"compare = {', '.join(averaged)}: averages the probabilities of options, and questions"
            f" of {data_name} are open; leave it out"
        )
    if context is None:
        return ()
    return check_context(context, [*splits.values(), *sets.values()], new_tokens)


def _require_options_space(
    splits: Mapping[str, EncodedSplit],
    methods: Sequence[MethodConfig],
    loss: LossConfig,
    data_name: str,
    option_score: str,
) -> None:
    """Refuse options space without options, or without a rule that scores them."""
    if loss.space == "options":
        field = "loss.space"
    elif any(method.build().term_space == "options" for method in methods):
        field = "method.space"
    else:
        return
    if option_score == "pmi":
        raise UserError(
            f"option_score is pmi; expected {any_of(WITHOUT_PRIOR)} for {field} = options, because"
            " training has no prompt without the question. Set another rule"
        )
    if any(rows.is_open for rows in splits.values()):
        raise UserError(
            f"{field} = options: questions of {data_name} are open and have no options; use vocab"
        )


def _require_shared_classes(
    train: EncodedSplit, methods: Sequence[MethodConfig], data_name: str
) -> None:
    """Refuse terms that compare classes over questions if classes differ between questions."""
    for method in methods:
        built = method.build()
        if built.term is None or not (built.term.needs_classes or built.term.per == "batch"):
            continue
        if built.space != "options":
            raise UserError(
                f"method.space is {built.space}; expected options for term {method.term}, which"
                " compares classes over questions. Set --method.space options"
            )
        if built.term.needs_classes:
            require_shared_options(train, f"method.term is {method.term}", data_name)


def _require_known_rows(
    train: EncodedSplit,
    methods: Sequence[MethodConfig],
    composition: CompositionConfig | None,
    data_name: str,
) -> None:
    """Refuse the oracle gate for rows that do not say what the base knows."""
    asks = any(GATES.make(method.gate).labelled_by == "world" for method in methods)
    if asks and not all("known" in row.example.extra for row in train):
        raise UserError(
            f"method.gate = oracle: rows of {data_name} do not say what the base knows; use"
            " it with task world, or the gate frozen_labels"
        )
    if asks and not any(row.example.extra["known"] for row in train):
        raise UserError(
            f"method.gate is oracle, and no row of {data_name} is known; expected some, or the term"
            " holds for none. Use the gate unknown, all or frozen_labels"
        )
    if composition is not None and composition.asks_the_world:
        known_to_the_world(train)


def check_context(context: int, sets: Iterable[EncodedSplit], new_tokens: int) -> tuple[str, ...]:
    """Refuse answers that do not fit into the context, and return notes on texts beyond it.

    Options beyond the context get numbers like all others, which are worth little: a note says so.
    An answer to an open question would have to be generated there: that is refused.

    Args:
        context: tokens that the model was made for (`max_position_embeddings`).
        sets: the questions. Without any, nothing is refused.

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
