"""Bad presets and bad command lines."""

from pathlib import Path

from tests.reliability.case import BENCH, EVAL, MERGE, STUDY, Case
from tests.reliability.place import Place, write

WORLD = Path(__file__).resolve().parents[2] / "configs" / "world.yaml"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def preset(content: object, *more: str):
    """train.py with a preset of this content."""
    return lambda place: ["--config", str(write(Path("bad.yaml"), content)), *more]


def options(*words: str):
    """A run on the world with these words after all others."""
    return lambda place: place.train(*words)


def plain(*words: str):
    return lambda place: list(words)


def _folder(place: Place) -> list[str]:
    Path("bad.yaml").mkdir()
    return ["--config", "bad.yaml"]


def _merge_both(place: Place) -> list[str]:
    return ["--run", str(place.run()), "--adapter", str(place.adapter()), "--out", "merged"]


PRESETS = [
    Case("a preset that is not there", plain("--config", "none.yaml")),
    Case("a folder as preset", _folder),
    Case("a preset that is not UTF-8", preset(b"seed: 1\nname: \xff\xfe")),
    Case("a preset that holds a NUL", preset("seed: 1\0")),
    Case("a preset that is no YAML", preset("data: {task: world\nseed: 1")),
    Case("a preset that is a list", preset("- seed: 1\n")),
    Case("two presets in one file", preset("seed: 1\n---\nseed: 2\n")),
    Case("an unknown key", preset("lora:\n  rnak: 8\n")),
    Case("a key of another section", preset("rank: 8\n")),
    Case("a value of the wrong type", preset("seed: eight\n")),
    Case("rows of one's own for the made-up world", plain("--data.path", "questions")),
    Case("fewer rows of a made-up world", plain("--data.test-rows", "200")),
    Case("a whole number written with a point", preset("training:\n  batch_size: 8.0\n")),
    Case("a value out of range", preset("lora:\n  rank: 0\n")),
    Case("a key given twice", preset("seed: 1\ntraining:\n  epochs: 1\nseed: 2\n")),
    Case("a section that is a value", preset("lora: 8\n")),
    Case(
        "a tag that would make a Python object",
        preset('seed: !!python/object/apply:os.system ["touch pwned"]\n'),
    ),
    Case("aliases that unfold to a billion values", preset(BOMB)),
    Case("lists nested 100,000 deep", preset("compare: " + "[" * 100_000)),
    Case(
        "a method and a term that contradict each other",
        preset("method:\n  name: cols\n  term: ecp\n"),
    ),
    Case("a path with a NUL", preset('run_dir: "a\\0b"\n')),
    Case("a path with half a character", preset('run_dir: "\\ud800"\n')),
]

COMMAND_LINES = [
    Case("an unknown option", options("--lora.rnak", "4")),
    Case("an option without its value", options("--seed")),
    Case("a word without an option", options("fast")),
    Case("not-a-number", options("--training.learning-rate", "nan")),
    Case("an infinite number", options("--training.learning-rate", "inf")),
    Case("a negative size", options("--training.batch-size", "-8")),
    Case("a weight that is infinite", options("--method.weight", "inf")),
    Case("a rank that no memory holds", options("--lora.r", "1000000000000")),
    Case("a batch that no memory holds", options("--training.batch-size", "1000000000000")),
    Case(
        "resamples that no time is enough for",
        lambda p: p.train("--evaluation.resamples", 10**12),
    ),
    Case("more bins than answers", lambda p: p.train("--evaluation.bins", 10**9)),
    Case("a seed beyond 64 bits", options("--seed", "9999999999999999999")),
    Case("a world of a trillion entities", options("--world.entities", "1000000000000")),
    Case("more devices than there are", options("--mesh.tensor", "64")),
    Case("an attention kernel the device cannot run", options("--model.attention", "cudnn")),
    Case("a comparison and a method", options("--compare", "sft,cols")),
    Case("an unknown method in a comparison", plain("--compare", "sft,calm")),
    Case("resuming nothing in particular", options("--run-dir", "nowhere", "--resume")),
    Case("a run folder whose name is too long", options("--run-dir", "x" * 300)),
    Case("a run folder whose name is not UTF-8", options("--run-dir", "caf\udce9")),
    Case("nothing to evaluate", plain(), EVAL),
    Case(
        "a run beside an adapter", lambda p: ["--run", str(p.run()), "--adapter", "adapter"], EVAL
    ),
    Case("an unknown task", lambda p: p.evaluate("--task", "wrld"), EVAL),
    Case("an unknown group of a task", lambda p: p.evaluate("--task", "world:form_c"), EVAL),
    Case(
        "answers without a file for them",
        plain("--model.path", "base", "--predict", "q.jsonl"),
        EVAL,
    ),
    Case(
        "an accuracy in per cent",
        lambda p: [
            "--run",
            str(p.run()),
            "--predict",
            "q.jsonl",
            "--out",
            "a.jsonl",
            "--target-accuracy",
            "90",
        ],
        EVAL,
    ),
    Case("an unknown benchmark", plain("speed"), BENCH),
    Case("a benchmark of an unknown method", plain("train", "--methods", "calm"), BENCH),
    Case(
        "figures into a folder that is a file",
        lambda p: ["train", "--config", "world", "--json", str(write(Path("f"), "")) + "/a.json"],
        BENCH,
    ),
    Case("a run and an adapter to merge", _merge_both, MERGE),
    Case("nothing to merge", plain("--out", "merged"), MERGE),
    Case("a study without a file", plain(), STUDY),
    Case(
        "a study with an unknown setting",
        lambda p: [
            str(
                write(
                    Path("s.yaml"),
                    f"preset: {WORLD}\nconditions: ['a lora.rnak=1']\ncompare: [sft]\nseeds: [1]\n",
                )
            )
        ],
        STUDY,
    ),
    Case(
        "a study with a negative seed",
        lambda p: [str(write(Path("s.yaml"), f"preset: {WORLD}\nseeds: [-1]\ncompare: [sft]\n"))],
        STUDY,
    ),
    Case(
        "a study whose condition sets the seed",
        lambda p: [str(write(Path("s.yaml"), f"preset: {WORLD}\nconditions: ['a seed=5']\n"))],
        STUDY,
    ),
    Case(
        "a study into a folder that is a file",
        lambda p: [
            str(write(Path("s.yaml"), f"preset: {WORLD}\nseeds: [1]\n")),
            "--folder",
            str(write(Path("f"), "")),
        ],
        STUDY,
    ),
    Case("tuning an unknown gate", plain("tune", "--gates", "nosuch"), STUDY),
    Case("tuning with an infinite weight", plain("tune", "--weights", "inf"), STUDY),
    Case("tuning methods by name", plain("tune", "--compare", "sft"), STUDY),
    Case(
        "tuning into a folder that is a file",
        lambda p: ["tune", "--out", str(write(Path("f"), ""))],
        STUDY,
    ),
]
