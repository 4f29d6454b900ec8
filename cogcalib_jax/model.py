"""A language model that answers questions with probabilities, with or without a LoRA adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.baselines.rows import Tfb
from cogcalib_jax.baselines.tfb import Fitted, fit, parse
from cogcalib_jax.calibration import CALIBRATORS, Calibrator, TemperatureScaler
from cogcalib_jax.console import warn
from cogcalib_jax.data.encoding import encode_split, special_prefix
from cogcalib_jax.data.example import EncodedSplit, Example, require_shared_options
from cogcalib_jax.data.task import (
    Examples,
    Prompting,
    RowSource,
    are_examples,
    as_examples,
    question_row,
    questions_of,
    stored_prompting,
)
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import read_calibration
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.inference.base_model import BaseModel, load_base_model, split_base
from cogcalib_jax.inference.config import (
    DEFAULT_OPTION_SCORE,
    EvaluationConfig,
    OpenConfig,
    OptionScore,
    stored_option_score,
)
from cogcalib_jax.inference.open_ended import OpenPredictions
from cogcalib_jax.inference.posthoc import OPTIONS, STORED, fit_on, require_rule, start_of
from cogcalib_jax.inference.predictions import UNKNOWN, Predictions
from cogcalib_jax.machines import MeshConfig
from cogcalib_jax.models.config import DecoderConfig, LoraConfig, ModelConfig, Quantise
from cogcalib_jax.models.decoder import Remat
from cogcalib_jax.models.generate import SamplingConfig, generate
from cogcalib_jax.models.parameters import merge_lora
from cogcalib_jax.sharding import make_mesh
from cogcalib_jax.training.compatible import check_context
from cogcalib_jax.training.storage import read_stored_run


class Answer(NamedTuple):
    """The answer of a model to one question."""

    answer: str
    """the most probable choice"""
    confidence: float
    """its probability"""
    probs: dict[str, float]
    """the probability of each choice"""


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model from Hugging Face files, with or without a LoRA adapter.

    A model never changes: methods that change something return another model, which shares the
    arrays. Make one with `from_pretrained`, or take it from the result of `finetune`.
    """

    base: BaseModel
    lora: nnx.State
    """LoRA parameters; without leaves if the model was loaded without `lora` and `adapter`"""
    prompting: Prompting = field(default_factory=Prompting)
    """the prompt of questions that do not bring their own"""
    option_score: OptionScore = DEFAULT_OPTION_SCORE
    """the rule by which options of several tokens are scored (docs/evaluation.md)"""
    calibrator: Calibrator | None = None
    """maps scores to probabilities in `predict` and `ask`; None: a softmax"""
    start: Model | None = None
    """the model in which fine-tuning began, for calibrators that need its scores"""
    tfb: Fitted | None = None
    """noise on the adapter, over which `predict` and `ask` average (`with_tfb`)"""
    options: tuple[str, ...] | None = None
    """the options that a stored calibrator was fitted on, if it needs one list"""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        adapter: str | Path | None = None,
        lora: LoraConfig | None = None,
        dtype: str = "auto",
        mesh: MeshConfig | Mesh | None = None,
        remat: Remat = "none",
        attention: str = "xla",
        quantise: Quantise = "none",
        seed: int = 0,
    ) -> Model:
        """Load a model in Hugging Face layout.

        Args:
            name_or_path: a local folder or a Hub id.
            adapter: a folder with a LoRA adapter in PEFT's layout. If it holds a
                `calibration.json`, its prompt, scoring rule and calibrator are used.
            lora: a fresh adapter of this form, to be trained; None: none, or `adapter`'s.
            dtype: "float32", "bfloat16", or "auto": bfloat16 on accelerators, and on a CPU with
                instructions for it if the checkpoint is stored so; otherwise float32.
            mesh: how devices share the work; None: by examples.
            remat: what the backward pass computes again to save memory (docs/scaling.md).
            attention, quantise: "xla", "cudnn", "splash"; "none", "int8", "nf4" (docs/models.md).
            seed: decides the first values of a fresh adapter.

        Raises:
            UserError: files that are missing, damaged or of an unknown family; an adapter of
                another base.
        """
        settings = ModelConfig(str(name_or_path), dtype, remat, attention, quantise)
        if adapter is not None and lora is not None:
            raise UserError(
                f"lora is given beside adapter = {adapter}; expected one of them. Leave lora out:"
                " the adapter has its own rank, alpha and modules"
            )
        mesh = mesh if isinstance(mesh, Mesh) else make_mesh(mesh or MeshConfig())
        if adapter is not None:
            lora = read_lora_config(adapter)
        model = cls(*load_base_model(settings, mesh, lora, adapter, seed))
        stored = None if adapter is None else read_calibration(Path(adapter))
        if stored is None:
            return model
        calibrator, options = stored.get(STORED), stored.get(OPTIONS)
        return replace(
            model,
            prompting=stored_prompting(stored),
            option_score=stored_option_score(stored) or DEFAULT_OPTION_SCORE,
            calibrator=None if calibrator is None else Calibrator.from_json(calibrator),
            options=None if options is None else tuple(options),
        )

    @classmethod
    def from_run(
        cls, folder: str | Path, *, base: str | Path | None = None, **settings: Any
    ) -> Model:
        """Load what `cogcalib train` left: base, adapter, prompt, scoring rule and calibrator.

        Args:
            folder: of one method, such as runs/NAME-N/cols.
            base: where the base is now; None: where it was.
            settings: as for `from_pretrained`; quantise is the run's if left out.

        Raises:
            UserError: a folder that is no finished run; as `from_pretrained`.
        """
        run = read_stored_run(folder := Path(folder))
        place, adapter = run.base() if base is None else base, folder / "adapter"
        settings = {"quantise": run.model.quantise} | settings
        model = cls.from_pretrained(place, adapter=adapter, **settings)
        if model.calibrator is None or not model.calibrator.needs_start:
            return model
        first = model.base.read_adapter(start_of(adapter, model.calibrator.name))
        return replace(model, start=replace(model, lora=first, calibrator=None))

    @property
    def config(self) -> DecoderConfig:
        """The decoder's sizes."""
        return self.base.decoder.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the base, or the adapter's own."""
        return self.base.tokenizer

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.base.mesh

    @property
    def lora_config(self) -> LoraConfig | None:
        """The form of the adapter; None without one."""
        return self.base.decoder.lora

    def with_lora(self, lora: nnx.State) -> Model:
        """Return this model with other LoRA parameters, of the same form."""
        return replace(self, lora=lora, tfb=None)

    def with_tfb(
        self,
        anchors: Examples | Sequence[Example] | RowSource,
        tfb: str | Tfb = "tfb",
        *,
        draws: int = 10,
        batch_size: int = 32,
        seed: int = 0,
    ) -> Model:
        """Return this model with the largest noise on its adapter that keeps its answers (TFB).

        Args:
            anchors: questions like those to be answered, such as training rows; see `predict`.
            tfb: settings, as in "tfb(criterion=flips)" (docs/baselines.md).
            draws: adapters over which an answer averages.
            batch_size, seed: of anchors and answers; of the draws.

        Raises:
            UserError: a model without adapter; anchors that do not fit.
        """
        if self.lora_config is None:
            raise UserError("tfb: the model has no adapter; expected one. Load it with adapter=...")
        known = are_examples(anchors)
        encoded = self.encode(anchors if known else questions_of(anchors, self.prompting))
        settings, config = parse(tfb), EvaluationConfig(batch_size=batch_size, mc_passes=draws)
        if not known and settings.criterion == "gold_nll":
            raise UserError("tfb: criterion gold_nll needs answers; expected a split of a Task")
        parts = (settings, self.base.split, self.lora, self.mesh, encoded, config)
        return replace(self, tfb=fit(*parts, self.option_score, seed), calibrator=None)

    def _require_one_adapter(self, what: str) -> None:
        if self.tfb is not None:
            raise UserError(f"{what}: the model averages over noise; call it before with_tfb")

    def with_calibrator(self, calibrator: Calibrator | None) -> Model:
        """Return this model with a calibrator fitted by its own option score; None: a softmax."""
        return replace(self, calibrator=calibrator, options=None)

    def without_adapter(self) -> Model:
        """Return the base alone: an adapter of zeros, and no calibrator."""
        off = jax.tree.map(jnp.zeros_like, self.lora)
        return replace(self, lora=off, calibrator=None, start=None, tfb=None)

    def encode(self, examples: Examples | Sequence[Example]) -> EncodedSplit:
        """Return the questions as token ids.

        Raises:
            UserError: a question that does not fit or cannot be told from another.
        """
        rows = as_examples(examples, self.prompting)
        asked = rows.prompting
        encoded, notes = encode_split(
            rows.split, rows, self.tokenizer, asked.data, asked.shots, asked.template
        )
        for note in (*notes, *check_context(self.config.max_position_embeddings, [encoded], 0)):
            warn(note)
        return encoded

    def predict(
        self,
        examples: Examples | Sequence[Example] | RowSource,
        *,
        batch_size: int = 32,
        option_score: OptionScore | None = None,
        calibrator: Calibrator | None = None,
    ) -> Predictions:
        """Return the probability of every option of every question.

        Args:
            examples: a split of a `Task`; or rows without a known answer (a file, a DataFrame,
                dicts with question and choices).
            batch_size: questions computed at a time.
            option_score: "mean", "sum", "chars" or "pmi"; None: the model's own rule.
            calibrator: replaces the model's own.

        Raises:
            UserError: rows that cannot be read; open questions, which `answer` answers.
        """
        settings = (batch_size, option_score, calibrator)
        if are_examples(examples):
            return self._predict(self.encode(examples), *settings)
        asked = questions_of(examples, self.prompting)
        found = self._predict(self.encode(asked), *settings)
        return replace(found, answers=np.full_like(found.answers, UNKNOWN))

    def _predict(
        self,
        encoded: EncodedSplit,
        batch_size: int = 32,
        option_score: OptionScore | None = None,
        calibrator: Calibrator | None = None,
    ) -> Predictions:
        if encoded.is_open:
            raise UserError(
                "predict: the questions are open; expected questions with choices. Use answer"
            )
        options = self.options if calibrator is None else None
        rule = option_score or self.option_score
        if calibrator is None and (calibrator := self.calibrator) is not None:
            require_rule(rule, self.option_score)
        if calibrator is not None and calibrator.needs_classes:
            require_shared_options(
                encoded, f"calibrator is {calibrator.name}", "the input", options
            )
        score = self.base.predictor(batch_size, rule)
        if self.tfb is not None:
            if option_score not in (None, self.option_score):
                self._require_one_adapter(f"option_score is {option_score}")
            start = calibrator and self._start_scores(encoded, calibrator, score)
            predictions = replace(self.tfb(encoded), calibrator=calibrator, start_scores=start)
        elif isinstance(calibrator, TemperatureScaler):
            predictions = score(self.lora, encoded, calibrator.temperature_)
        else:
            predictions = score(self.lora, encoded)
            if calibrator is not None:
                start = self._start_scores(encoded, calibrator, score)
                predictions = replace(predictions, calibrator=calibrator, start_scores=start)
        return replace(predictions, encoded=encoded, quantise=self.base.split.quantise)

    def _start_scores(
        self, encoded: EncodedSplit, calibrator: Calibrator, score: Callable[..., Predictions]
    ) -> np.ndarray | None:
        if not calibrator.needs_start:
            return None
        if self.start is None:
            raise UserError(
                f"calibrator is {calibrator.name}, which needs the start; expected a model with its"
                " start, such as the result of finetune. Use another calibrator"
            )
        return score(self.start.lora, encoded).option_scores

    def ask(self, question: str, choices: Sequence[str], *, passage: str = "") -> Answer:
        """Return the answer to one question, with the probability of each choice.

        Raises:
            UserError: choices that are equal or cannot be told apart.
        """
        predictions = self.predict([row := question_row(question, choices, passage)])
        probs = dict(zip(row["choices"], predictions.probs[0].tolist(), strict=True))
        return Answer(chosen := row["choices"][predictions.predicted[0]], probs[chosen], probs)

    def answer(
        self,
        examples: Examples,
        *,
        max_new_tokens: int = 32,
        samples: int = 0,
        p_true: bool = False,
        batch_size: int = 32,
        seed: int = 0,
    ) -> OpenPredictions:
        """Return greedy answers to open questions, with the model's confidence in them.

        Args:
            examples: a split of a task of open questions.
            max_new_tokens: most tokens of an answer.
            samples: sampled answers for the confidence "agreement"; 0: none.
            p_true: ask the model if its answer is right, for the confidence "p_true".
            batch_size: questions answered at a time.
            seed: of the samples.

        Raises:
            UserError: questions with choices, which `predict` answers; prompts that leave no room.
        """
        self._require_one_adapter("answer")
        encoded = self.encode(examples)
        if not encoded.is_open:
            raise UserError(
                "answer: the questions have choices; expected open questions. Use predict"
            )
        check_context(self.config.max_position_embeddings, [encoded], max_new_tokens)
        settings = OpenConfig(max_new_tokens=max_new_tokens, samples=samples, p_true=p_true)
        evaluation = EvaluationConfig(batch_size=batch_size, open=settings)
        write = self.base.open_predictor(examples.prompting.data, evaluation)
        return replace(write(self.lora, encoded, seed=seed), quantise=self.base.split.quantise)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Return the model's continuation of each prompt, without the prompt.

        Args:
            prompts: texts; special tokens are added as the tokenizer does.
            max_new_tokens: most tokens of each continuation.
            temperature: 0 takes the likeliest token each time; else logits are divided by it.
            top_p: sample from the likeliest tokens that together reach this probability.
            seed: of the sampling.

        Raises:
            UserError: a prompt that leaves no room in the model's context.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        sampling = SamplingConfig(max_new_tokens, temperature, top_p)
        # Without the end token that some tokenizers append.
        first = special_prefix(self.tokenizer)
        ids = [first + self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        written = generate(self.base.split.merge(self.lora), ids, sampling, seed=seed)
        return [self.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in written]

    def calibrate(
        self,
        examples: Examples,
        calibrator: str | Calibrator = "temperature",
        *,
        taught: Examples | None = None,
        batch_size: int = 32,
        option_score: OptionScore | None = None,
    ) -> Calibrator:
        """Return a calibrator fitted on labelled questions that the model was not trained on.

        Args:
            examples: the calibration split of a task.
            calibrator: a name (temperature, vector, platt, isotonic, mixture, linear_mixture,
                daca), with settings if wanted, as in "vector(l2=0.1)"; or one of your own.
            taught: taught facts in other words, with equal weight; None: the fit ignores them.
            batch_size, option_score: as for `predict`.

        Raises UserError for questions on which it cannot be fitted.
        """
        made, parts, rule = CALIBRATORS.make(calibrator), [], option_score or self.option_score
        for rows in [examples] if taught is None else [examples, taught]:
            encoded = self.encode(rows)
            if made.needs_classes:
                require_shared_options(encoded, f"calibrator is {made.name}", "the input")
            start = self._start_scores(encoded, made, self.base.predictor(batch_size, rule))
            scored = self.with_calibrator(None)._predict(encoded, batch_size, rule)
            parts.append(replace(scored, start_scores=start))
        return fit_on(made, parts)

    def merge_and_unload(self) -> Model:
        """Return a model without adapter whose weights hold it; refuses a quantised base."""
        self._require_one_adapter("merge_and_unload")
        decoder = merge_lora(self.base.split.merge(self.lora))
        base, lora = split_base(self.base.name, decoder, self.tokenizer)
        return replace(self, base=base, lora=lora, start=None)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter, a model card and the tokenizer in PEFT's layout; or, for a model
        without adapter, the weights and the tokenizer in Hugging Face layout.

        Raises:
            UserError: a folder that cannot be written; a quantised base without adapter.
        """
        self._require_one_adapter("save_pretrained")
        folder = Path(folder)
        if self.lora_config is None:
            save_decoder(self.base.split.merge(self.lora), folder)
            self.tokenizer.save_pretrained(folder)
            return
        asked = (self.prompting, self.option_score, self.calibrator)
        self.base.save_adapter(folder, self.lora, *asked)
