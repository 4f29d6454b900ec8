"""An evaluation looked at before it starts: questions, precision, memory and time.

Nothing is written, and of each base only config.json and the tokenizer are read; a world's that was
not built yet stays unbuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.data.packing import packed_batches
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.context import check_context
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.inference.subgroups import question_fields, require_fields
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.plan.memory import Memory, device_limit, scoring_memory
from cogcalib_jax.plan.plan import BatchShape
from cogcalib_jax.runs.compiling import Programs, compile_seconds, scoring_programs
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.dry_report import (
    Report,
    examples_of,
    show_lengths,
    show_memory,
    show_overlaps,
    show_precision,
    show_prompt,
    show_rows,
    show_time,
)
from cogcalib_jax.runs.eval_config import (
    EvalConfig,
    require_same_evaluation,
)
from cogcalib_jax.runs.evaluated import Evaluated, by_base, evaluated_models
from cogcalib_jax.runs.folder import choose_folder
from cogcalib_jax.runs.open_questions import open_predictor
from cogcalib_jax.runs.outline import Outline, outline_base
from cogcalib_jax.runs.questions import encode_questions, test_questions
from cogcalib_jax.runs.workload import METHOD_SECONDS, Workload, measure
from cogcalib_jax.sharding import batch_parts, make_mesh
from cogcalib_jax.world.config import PretrainConfig

Sets = Mapping[str, EncodedSplit]
"""task -> its questions as token ids"""


def dry_run_evaluation(config: EvalConfig) -> str:
    """The report on what `config` would evaluate.

    Raises UserError for the mistakes that an evaluation itself would refuse before it loads a
    weight; whether an adapter belongs to its base, only the weights tell.
    """
    folder = choose_folder(config.run_dir, "eval", config.resume)
    if config.resume:
        require_same_evaluation(folder, config)
    models = evaluated_models(config, look_only=True)
    runs = [member.run for model in models for member in model.members or (model,)]
    runs = [run for run in runs if run is not None]
    notes: list[str] = []
    questions = test_questions(config, runs, notes.append)
    report = Report(
        f"Dry run of evaluating {', '.join(model.name for model in models)} on"
        f" {', '.join(questions)}; nothing was loaded, built or written."
    )
    bases = {model.reads_with: _outline(config, model, notes.append) for model in models}
    sets = {
        reading: encode_questions(config, questions, base.tokenizer, notes.append)
        for reading, base in bases.items()
    }
    for model in models:
        _check(config, model, bases[model.reads_with], sets[model.reads_with])
    for reading, base in bases.items():
        new_tokens = config.evaluation.open.max_new_tokens
        context = base.config.max_position_embeddings
        notes.extend(check_context(context, sets[reading].values(), new_tokens))

    tasks = next(iter(sets.values()))
    show_rows(report, tasks, notes)
    trained = _trained_on(report, runs)
    show_overlaps(report, trained | examples_of(tasks), trained)
    for reading, base in bases.items():
        if len(bases) > 1:
            report.section(f"With the tokenizer of {base.tokenizer.name_or_path or base.name}:")
        show_lengths(report, sets[reading], config.data)
        for task, encoded in sets[reading].items():
            data = config.data.for_task(task.partition(":")[0])
            show_prompt(report, task, encoded, base.tokenizer, data)
    for task, encoded in tasks.items():
        show_precision(report, task, encoded, config.evaluation.bins)
    _show_cost(report, config, models, bases, sets)
    return report.text()


def _outline(config: EvalConfig, model: Evaluated, note: Callable[[str], None]) -> Outline:
    run, own = model.run, (model.tokenizer_from, note)
    if run is None or config.model.path is not None:
        return outline_base(config.model, config.world, PretrainConfig(), config.seed, *own)
    return outline_base(run.model, run.world, run.pretrain, run.seed, *own)


def _check(config: EvalConfig, model: Evaluated, base: Outline, sets: Sets) -> None:
    """What an evaluation refuses once it has the questions."""
    require_fields(config.by, {task: question_fields(encoded) for task, encoded in sets.items()})
    mesh = make_mesh(config.mesh)
    outline = base.model(model.lora, config.model, mesh)
    open_predictor(
        outline,
        Predictor(outline, mesh, config.evaluation),
        config.evaluation,
        config.data,
        base.tokenizer,
        sets.values(),
    )


def _trained_on(report: Report, runs: Sequence[RunConfig]) -> dict[str, tuple[Example, ...]]:
    """Rows that some of the runs were trained on, as far as they are still there."""
    trained = {}
    for data, world, seed in dict.fromkeys((run.data, run.world, run.seed) for run in runs):
        name = f"training rows of {data.task}" + (f" (seed {seed})" if data.task == "world" else "")
        try:
            splits = load_splits(data, seed, world=world)
        except UserError as error:
            report.remarks.append(f"not compared with the {name}: {error}")
            continue
        trained[name] = (*splits.style, *splits.train)
    return trained


def _show_cost(
    report: Report,
    config: EvalConfig,
    models: Sequence[Evaluated],
    bases: Mapping[tuple[str, str], Outline],
    sets: Mapping[tuple[str, str], Sets],
) -> None:
    mesh = make_mesh(config.mesh)
    dtype = config.model.jax_dtype(mesh)
    report.section("Memory")
    needs = [
        _memory(config, model, bases[model.reads_with].config, encoded)
        for model in models
        for encoded in sets[model.reads_with].values()
    ]
    largest = max(needs, key=lambda memory: memory.total)
    basis = f"{dtype.name}, attention in full, {mesh.size} x {mesh.devices.flat[0].device_kind}"
    show_memory(report, "Scoring", largest, device_limit(mesh), basis)
    for reading, base in bases.items():
        chosen = [model for model in models if model.reads_with == reading]
        parts = []
        for model in chosen:
            workload = Workload(base.config, model.lora, config.evaluation)
            passes = (config.mc_passes or 1) * max(1, len(model.members))
            for task, encoded in sets[reading].items():
                label = task if len(chosen) == 1 else f"{model.name}: {task}"
                parts.append((label, workload.evaluating(encoded) * passes))
        is_open = any(encoded.is_open for encoded in sets[reading].values())
        shape = _shape(config, max(sets[reading].values(), key=len))
        answers = config.evaluation.batch_size if is_open else None
        rates = measure(base.config, mesh, dtype, shape.examples * shape.tokens, answers)
        splits = list(sets[reading].values())
        groups = by_base(chosen)
        # Models of one shape share what is compiled; members of an ensemble are one program.
        model, adapter = base.parts(chosen[0].lora, config.model, mesh)
        seconds = compile_seconds(model, adapter, mesh, config.evaluation, splits[0])
        programs = Programs(0, len(groups) * scoring_programs(splits), seconds)
        heading = "Time" if len(bases) == 1 else f"Time with {base.name}"
        show_time(report, heading, parts, rates, programs, METHOD_SECONDS * len(chosen))


def _shape(config: EvalConfig, encoded: EncodedSplit) -> BatchShape:
    """Of the batches that score a question set."""
    parts = batch_parts(make_mesh(config.mesh))
    batch = next(iter(packed_batches(encoded, config.evaluation.batch_size, parts)))
    (rows, tokens), scored = batch.input_ids.shape, batch.scored.shape[1]
    return BatchShape(rows, tokens, scored)


def _memory(
    config: EvalConfig, model: Evaluated, base: DecoderConfig, encoded: EncodedSplit
) -> Memory:
    cached = 0
    if encoded.is_open:
        longest = max(len(e.prompt_ids) for e in encoded)
        cached = longest + config.evaluation.open.max_new_tokens
    mesh = make_mesh(config.mesh)
    memory = scoring_memory(
        base,
        mesh,
        lora=model.lora,
        shape=_shape(config, encoded),
        dtype=config.model.jax_dtype(mesh),
        cached=cached,
    )
    members = max(1, len(model.members))
    at_once = min(config.evaluation.members_at_once or members, members)
    return memory._replace(
        adapter=memory.adapter * members,
        working=memory.working * at_once,
        logits=memory.logits * at_once,
    )
