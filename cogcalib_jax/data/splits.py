"""Official rows become five splits that share no row and no question.

Rows are joined into *components*: rows with the same question (`example.question_key`) or the same
group, and all rows joined with these. A component goes into one split as a whole. Rows that differ
in case alone are joined only if their right answer is the same: "5 mW" does not leak "5 MW".
docs/tasks.md states which rows are left out if official splits overlap.
"""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cogcalib_jax.data.config import MAX_CALIBRATION_ROWS, DataConfig
from cogcalib_jax.data.example import (
    Example,
    Splits,
    fold_case,
    question_clusters,
    question_key,
    repeats_note,
    unlabelled,
)
from cogcalib_jax.data.tasks import TASKS, RowTask
from cogcalib_jax.errors import UserError

# WinoGrande S has 640 rows: 500 for calibration alone would leave nothing to train on.
_CARVED_SHARE = 0.15
_CARVED_TEST_SHARE = 0.2
_MAX_CARVED_TEST = 2000


class Official(NamedTuple):
    """The rows as published; a split that is None is carved from train."""

    train: Sequence[Example]
    validation: Sequence[Example] | None
    test: Sequence[Example] | None


def make_splits(official: Official, config: DataConfig, carve: int = 0) -> Splits:
    """Make the five splits, deterministic in the rows and `config.split_seed`.

    Rows keep their order within a split. The seed draws the carved rows and the rows that a limit
    keeps; a limit on one split changes nothing in the others. `carve` rows of train become the
    split `anchor`, without their answers.

    Raises:
        UserError: too few training rows for the splits asked for.
    """
    train, validation, notes = _without_overlap(official, config)
    if official.validation is not None and not validation:
        raise UserError(
            f"task {config.task}: all validation rows {_leak('test', config)}; give other"
            f" validation rows, or none (they are then carved from train){_keep(config)}"
        )
    lost = "".join(f" ({note})" for note in notes if note.startswith("train:"))
    shots, deck = _deal_shots(train, config)
    held = sum(map(len, deck))
    if shots:
        more = len(train) - held - len(shots)
        notes.append(
            f"train: {len(shots)} rows are the solved questions before every prompt and not trained"
            f" on{f', nor are {more} that repeat them or share their group' if more else ''}"
        )
    sizes = _carved_sizes(official, len(train), config)
    left = held - sum(sizes.values())
    if left < 2 or min(sizes.values()) < 1:
        shown = {"solved questions (data.few_shot)": len(train) - held} if shots else {}
        # A default size of 0 is a share of too few rows.
        parts = ", ".join(f"{rows or 1} {name}" for name, rows in (sizes | shown).items())
        fewer = " or lower --data.calibration-rows and --data.validation-rows"
        raise UserError(
            f"task {config.task}: {len(train)} training rows are too few for {parts} and at"
            f" least 2 rows for style adaptation and fine-tuning{lost}; give more rows"
            f"{fewer if max(sizes.values()) > 1 else ''}{_keep(config) if lost else ''}"
        )
    carved: dict[str, list[int]] = {}
    for name, rows in sizes.items():
        # A size that was asked for is a limit; a default one may be passed by a single group.
        asked = getattr(config, f"{name}_rows") is not None
        carved[name], deck = _deal(deck, rows, at_least_one=not asked)
    pool, _ = _deal(deck, config.train_rows or len(train))
    style_rows = min(max(1, round(config.style_fraction * len(pool))), max(len(pool) - 1, 0))
    # Dealt anew from whole components, since the limit may have dropped some.
    chosen = set(pool)
    carved["style"], rest = _deal(
        [c for c in deck if c[0] in chosen], style_rows, at_least_one=True
    )
    if carve:
        carved["anchor"], rest = _deal(rest, carve)
        sizes["anchor"] = carve
    carved["train"] = [row for component in rest for row in component]
    for name, rows in carved.items():
        if not rows:
            components = _components(train)
            raise UserError(
                f"task {config.task}: no row is left for {name}: {len(train)} training rows lie in "
                f"{len(components)} groups, the smallest of {min(map(len, components))}, which are"
                " kept whole; give more groups, or raise the limits on rows"
            )
        if name in sizes and len(rows) != sizes[name]:
            notes.append(
                f"{name}: {len(rows)} rows instead of {sizes[name]}, since groups are kept whole"
            )
    splits = {name: tuple(train[i] for i in sorted(rows)) for name, rows in carved.items()}
    if carve:
        splits["anchor"] = tuple(map(unlabelled, splits["anchor"]))
    if official.validation is not None:
        splits["validation"] = _limit(validation, config.validation_rows, config.split_seed, 1)
    if official.test is not None:
        splits["test"] = limit_test(official.test, config)
    if not _drops_groups(config):
        notes += _shared_groups(train, validation, official.test or ())
    notes += repeats_note("test", question_clusters(splits["test"]))
    return Splits(**splits, shots=shots, notes=tuple(notes))


def require_apart(
    anchors: Sequence[Example],
    others: Mapping[str, Sequence[Example]],
    where: str,
    groups_are_names: bool = False,
) -> None:
    """Refuse anchors that share a question, a group or a person with the rows of `others`.

    Args:
        others: what messages call the rows -> the rows.
        groups_are_names: whether groups are names of people, which a question without a group may
            hold.

    Raises:
        UserError: such an anchor.
    """
    for name, rows in others.items():
        questions = {question_key(row) for row in rows}
        groups = {row.group for row in rows if row.group is not None}
        people = re.compile("|".join(map(re.escape, groups)) if groups_are_names else r"(?!)")
        shared = [
            row
            for row in anchors
            if question_key(row) in questions
            or row.group in groups
            or (groups and row.group is None and people.search(row.question))
        ]
        if shared:
            raise UserError(
                f"{where}: {len(shared):,} of {len(anchors):,} questions share question, group or"
                f" person with {name} (the first: {shared[0].id}, {shared[0].question!r:.80});"
                " expected none. Leave them out, or keep groups of your own rows apart with"
                " --data.shared-groups drop"
            )


def draw_shots(official: Official, config: DataConfig) -> tuple[Example, ...]:
    """Return the solved questions that `make_splits` draws from the same rows (UserError: too
    few)."""
    train, _, _ = _without_overlap(official, config)
    return _deal_shots(train, config)[0]


def limit_test(test: Sequence[Example], config: DataConfig) -> tuple[Example, ...]:
    """Return at most `config.test_rows` of the test rows."""
    return _limit(test, config.test_rows, config.split_seed, 2)


def _deal_shots(
    train: Sequence[Example], config: DataConfig
) -> tuple[tuple[Example, ...], list[list[int]]]:
    """Return solved questions, and the deck of components without theirs.

    They come off the end of the deck, so that calibration and validation rows, which come off its
    front, stay the same for any number of them.
    """
    components = _components(train)
    deck = [components[i] for i in _rng(config.split_seed, 0).permutation(len(components))]
    if config.few_shot > len(deck):
        raise UserError(
            f"task {config.task}: data.few_shot = {config.few_shot}, and the training split has"
            f" {len(deck)} different questions; lower it"
        )
    rest = len(deck) - config.few_shot
    return tuple(train[component[0]] for component in deck[rest:]), deck[:rest]


def _carved_sizes(official: Official, n_train: int, config: DataConfig) -> dict[str, int]:
    """Return the number of rows to be carved from train, by split."""
    sizes = {}
    share = round(_CARVED_SHARE * n_train)
    if official.test is None:
        sizes["test"] = config.test_rows or min(
            _MAX_CARVED_TEST, round(_CARVED_TEST_SHARE * n_train)
        )
    if official.validation is None:
        sizes["validation"] = config.validation_rows or min(MAX_CALIBRATION_ROWS, share)
    sizes["calibration"] = config.calibration_rows or min(MAX_CALIBRATION_ROWS, share)
    return sizes


def _drops_groups(config: DataConfig) -> bool:
    """Return whether a row that shares a group with a later official split is left out.

    The groups that readers find in published tasks join rows that reveal each other's answers.
    """
    task = TASKS[config.task]
    published = isinstance(task, RowTask) and task.hub is not None
    return published or config.shared_groups == "drop"


def _leak(later: str, config: DataConfig) -> str:
    shares = " or share its group" if _drops_groups(config) else ""
    return f"repeat a question of the {later} split{shares}"


def _keep(config: DataConfig) -> str:
    """Return the option that keeps rows which the user's own choice left out."""
    return ", or use --data.shared-groups keep" if config.shared_groups == "drop" else ""


def _without_overlap(
    official: Official, config: DataConfig
) -> tuple[list[Example], list[Example], list[str]]:
    """Return train and validation rows that share no component with a later split, and notes."""
    validation, test = official.validation or (), official.test or ()
    rows = [*official.train, *validation, *test]
    n_train, n_before_test = len(official.train), len(official.train) + len(validation)
    kept_train, kept_validation = [], []
    lost = {("train", "test"): 0, ("train", "validation"): 0, ("validation", "test"): 0}
    for component in _components(rows, groups=_drops_groups(config)):
        # Indices are sorted, so the last one is in the component's latest split.
        of_test = component[-1] >= n_before_test
        of_validation = component[-1] >= n_train
        for i in component:
            if i < n_train and (of_test or of_validation):
                lost["train", "test" if of_test else "validation"] += 1
            elif i < n_train:
                kept_train.append(i)
            elif i < n_before_test and of_test:
                lost["validation", "test"] += 1
            elif i < n_before_test:
                kept_validation.append(i)
    notes = [
        f"{name}: {n} of {len(getattr(official, name))} rows left out, since they "
        f"{_leak(later, config)}"
        for (name, later), n in lost.items()
        if n
    ]
    return [rows[i] for i in sorted(kept_train)], [rows[i] for i in sorted(kept_validation)], notes


def _shared_groups(
    train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]
) -> list[str]:
    """Return a note on the groups that files have in common; [] if there are none."""
    files = {"train": train, "validation": validation, "test": test}
    groups = {name: {row.group for row in rows} - {None} for name, rows in files.items()}
    times = Counter(group for found in groups.values() for group in found)
    shared = {group for group, files_with_it in times.items() if files_with_it > 1}
    if not shared:
        return []
    rows = ", ".join(
        f"{sum(row.group in shared for row in found)} of {len(found)} rows of {name}"
        for name, found in files.items()
        if shared & groups[name]
    )
    n = f"{len(shared)} group{'s stand' if len(shared) > 1 else ' stands'}"
    return [
        f"group: {n} in more than one of your files ({rows}), which are used as you split them;"
        " --data.shared-groups drop leaves such training rows out"
    ]


def _components(rows: Sequence[Example], groups: bool = True) -> list[list[int]]:
    """Return the indices of rows that belong together, each list and the lists in order.

    groups: also join the rows of one group.
    """
    if not rows:
        return []
    folded = [_folded(row) for row in rows]
    often = Counter(folded)
    ids: dict[Hashable, int] = {}
    edges = []
    for i, row in enumerate(rows):
        keys: list[Hashable] = [("question", question_key(row))]
        if often[folded[i]] > 1:
            right = row.aliases or (row.choices[row.answer],)
            keys += [("answer", folded[i], fold_case(answer)) for answer in right]
        if groups and row.group is not None:
            keys.append(("group", row.group))
        edges += [(i, len(rows) + ids.setdefault(key, len(ids))) for key in keys]
    size = len(rows) + len(ids)
    graph = coo_array((np.ones(len(edges)), np.transpose(edges)), (size, size))
    _, labels = connected_components(graph, directed=False)
    components: dict[int, list[int]] = {}
    for i in range(len(rows)):
        components.setdefault(int(labels[i]), []).append(i)
    return list(components.values())


def _folded(example: Example) -> tuple[str, ...]:
    """Return `question_key` without case."""
    choices = () if example.is_open else sorted(map(fold_case, example.choices))
    return (fold_case(example.passage), fold_case(example.question), *choices)


def _deal(
    deck: list[list[int]], rows: int, at_least_one: bool = False
) -> tuple[list[int], list[list[int]]]:
    """Take components off the deck, in its order, while they fit into `rows`; return the rest, too.

    at_least_one: take the smallest component if none fits.
    """
    taken: list[int] = []
    rest = []
    if at_least_one and deck:
        rows = max(rows, min(map(len, deck)))
    for component in deck:
        if len(taken) + len(component) <= rows:
            taken += component
        else:
            rest.append(component)
    return taken, rest


def _limit(
    rows: Sequence[Example], limit: int | None, seed: int, stream: int
) -> tuple[Example, ...]:
    if limit is None or limit >= len(rows):
        return tuple(rows)
    chosen = np.sort(_rng(seed, stream).permutation(len(rows))[:limit])
    return tuple(rows[i] for i in chosen)


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
