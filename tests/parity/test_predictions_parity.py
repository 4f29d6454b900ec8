"""Prediction rows rescored by transformers from their text alone, with its tokenizer's defaults.

What is read from a row to rescore it is `prompt` and `completions`, nothing else: anyone can do the
same, and would notice a BOS too many, a completion tokenised out of context, or a truncation that
is not in the text.
"""

import json
import shutil
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Qwen2Config,
)

import eval as eval_program  # noqa: E402
from cogcalib_jax.model import Model  # noqa: E402
from cogcalib_jax.world.config import WorldConfig  # noqa: E402
from cogcalib_jax.world.corpus import build_tokenizer, save_tokenizer  # noqa: E402

ROWS = 50
TASKS = {"openbookqa": "openbookqa", "winogrande_s": "winogrande", "boolq": "boolq"}
WORLD = WorldConfig(
    entities=70, train=24, test=ROWS + 2, validation=12, calibration=40, style=16, seed=3
)
# Weights so large that the logits are spread out: a near-uniform model would forgive anything.
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.5,
}
EVERYWHERE = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
]
# Families that compute something of their own, with an adapter.
ADAPTED = {
    "gemma2": (
        Gemma2Config,
        {
            "head_dim": 8,
            "sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (Gemma3TextConfig, {"head_dim": 8, "sliding_window": 9, "sliding_window_pattern": 2}),
    "granite": (
        GraniteConfig,
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
            "logits_scaling": 1.5,
        },
    ),
    "olmo2": (Olmo2Config, {}),
    "olmo3": (
        Olmo3Config,
        {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
FAMILIES = ADAPTED | {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    # A window much shorter than the prompts.
    "mistral": (MistralConfig, {"sliding_window": 24}),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    # Texts are too short to share out; idle threads only get in the way.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model of a family beside a copy of a tokenizer, as one downloads them."""
    made = {}

    def make(family, tokenizer, vocab):
        key = (family, str(tokenizer))
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            config, more = FAMILIES[family]
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config(vocab_size=vocab, **SMALL | more))
            model.save_pretrained(folder)
            for file in tokenizer.iterdir():
                shutil.copy(file, folder)
            made[key] = folder
        return made[key]

    return make


def predictions(model, folder, *options):
    task = options[options.index("--task") + 1]
    command = ["--model.path", str(model), "--run-dir", str(folder), *options]
    # All rows in one batch of one padded length: one compilation.
    eval_program.main([*command, "--evaluation.batch-size", "64", "--evaluation.resamples", "100"])
    rows = [json.loads(x) for x in (folder / f"predictions/{task}.jsonl").open(encoding="utf-8")]
    assert len(rows) >= ROWS
    return rows[:ROWS]


class Rescorer:
    """log p(completion | prompt) of texts and their tokens, one text at a time, not padded."""

    def __init__(self, folder, adapter=None):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # The others' attention knows no soft cap.
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        if adapter is not None:
            self.model = peft.PeftModel.from_pretrained(self.model, adapter).eval()
        self._logprobs = {}

    def __call__(self, prompt, completion):
        n = len(self.tokenizer(prompt)["input_ids"])
        ids = self.tokenizer(prompt + completion)["input_ids"]
        logprobs = self._next(tuple(ids[:-1]), len(ids) - n)
        return sum(logprobs[t, token].item() for t, token in enumerate(ids[n:])), len(ids) - n

    def _next(self, ids, keep):
        # Options of one letter share their input.
        if (ids, keep) not in self._logprobs:
            with torch.no_grad():
                logits = self.model(torch.tensor([ids]), logits_to_keep=keep).logits
            self._logprobs = {(ids, keep): torch.log_softmax(logits[0], -1)}
        return self._logprobs[ids, keep]


def require_same(rows, folder, adapter=None):
    rescore = Rescorer(folder, adapter)
    for row in rows:
        found = [rescore(row["prompt"], completion) for completion in row["completions"]]
        theirs, tokens = np.array(found).T
        np.testing.assert_allclose(row["option_logprobs"], theirs, rtol=0, atol=1e-4)
        # And what follows from them.
        assert row["scoring"] == "mean" and row["option_tokens"] == tokens.tolist()
        probs = np.exp(theirs / tokens) / np.exp(theirs / tokens).sum()
        best = int(np.argmax(probs))
        assert row["prediction"] == best
        np.testing.assert_allclose(row["option_probs"], probs, atol=1e-4)
        assert row["confidence"] == pytest.approx(probs[best], abs=1e-4)
        assert row["nll"] == pytest.approx(-np.log(probs[row["answer"]]), abs=1e-3)
        assert row["vocab_confidence"] == pytest.approx(np.exp(theirs[best]), abs=1e-4)
    spread = np.std([row["option_logprobs"][0] for row in rows])
    assert spread > 0.1, "a model that says the same of every row proves nothing"


@pytest.mark.parametrize(
    ("family", "tokenizer", "vocab", "task"),
    [
        *(("qwen2", "Qwen2.5-base", 151_936, task) for task in TASKS),
        *(("mistral", "Mistral-7B-v0.1", 32_000, task) for task in TASKS),
        ("llama", "Mistral-7B-v0.1", 32_000, "openbookqa"),
    ],
)
def test_real_tokenizers(family, tokenizer, vocab, task, realdata, checkpoint, tmp_path):
    folder = checkpoint(family, realdata / "tokenizers" / tokenizer, vocab)
    rows = predictions(
        folder,
        tmp_path / "eval",
        *("--task", task, "--data.path", str(realdata / TASKS[task])),
        *("--data.test-rows", str(ROWS)),
    )
    require_same(rows, folder)


def test_options_of_several_tokens(realdata, checkpoint, tmp_path):
    folder = checkpoint("qwen2", realdata / "tokenizers" / "Qwen2.5-base", 151_936)
    rows = predictions(
        folder,
        tmp_path / "eval",
        *("--task", "openbookqa", "--data.path", str(realdata / "openbookqa")),
        *("--data.test-rows", str(ROWS), "--data.prompt", "cloze"),
    )
    assert max(len(ids) for row in rows for ids in row["completion_ids"]) > 3
    require_same(rows, folder)


def test_a_real_checkpoint(realdata, tmp_path):
    folder = realdata / "models" / "stories260K"
    rows = predictions(
        folder,
        tmp_path / "eval",
        *("--task", "openbookqa", "--data.path", str(realdata / "openbookqa")),
        *("--data.test-rows", str(ROWS), "--data.max-length", "320"),
    )
    require_same(rows, folder)


def of_the_world(family, checkpoint, folder):
    """A model with the world's tokenizer, and the options that ask it the world's questions."""
    (folder / "tokenizer").mkdir()
    save_tokenizer(WORLD, folder / "tokenizer", 64)
    vocab = build_tokenizer(WORLD).get_vocab_size()
    sizes = ("entities", "train", "test", "validation", "calibration", "style", "seed")
    options = [p for n in sizes for p in (f"--world.{n}", str(getattr(WORLD, n)))]
    return checkpoint(family, folder / "tokenizer", vocab), ["--task", "world", *options]


def test_the_worlds_own_tokenizer(checkpoint, tmp_path):
    model, options = of_the_world("llama", checkpoint, tmp_path)
    require_same(predictions(model, tmp_path / "eval", *options), model)


@pytest.mark.parametrize("family", ADAPTED)
def test_adapters_from_peft_and_back(family, checkpoint, tmp_path):
    model, options = of_the_world(family, checkpoint, tmp_path)
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.LoraConfig(r=2, target_modules=EVERYWHERE, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tied embeddings: nothing is merged here
        peft.get_peft_model(base, config).save_pretrained(tmp_path / "theirs")
    command = ["--adapter", str(tmp_path / "theirs"), *options]
    rows = predictions(model, tmp_path / "eval", *command)
    require_same(rows, model, tmp_path / "theirs")
    ours = Model.from_pretrained(model, adapter=tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        require_same(rows, model, tmp_path / "ours")
