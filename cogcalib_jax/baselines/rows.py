"""The baselines: rows of a comparison that are made from plain fine-tuning and are no loss.

Facts of an entry: `what` it is, with its source; `cost` of an answer, in which {n} is the number of
draws, passes or members, or a sentence without one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cogcalib_jax.baselines.registry import BASELINES, Baseline
from cogcalib_jax.registry import require
from cogcalib_jax.training.variant import Ivon, IvonSettings

register_baseline = BASELINES.register


@register_baseline(
    "mc_dropout",
    label="MC-dropout",
    what="SFT with dropout while answering, Gal and Ghahramani 2016",
    cost="probabilities averaged over {n} passes with dropout on, so an answer costs {n} times as"
    " much",
)
class McDropout(Baseline):
    """SFT trained with dropout, which stays on while it answers."""

    adapters = "any"


@register_baseline(
    "ensemble",
    label="Ensemble",
    what="deep ensemble of SFT, Lakshminarayanan et al. 2017",
    cost="probabilities averaged over {n} members on one base, each fine-tuned by itself, so"
    " training and an answer cost {n} times as much",
)
class Ensemble(Baseline):
    """Several fine-tunings, each with its own first weights and data order."""

    adapters = "any"


@register_baseline(
    "laplace_lora",
    label="Laplace-LoRA",
    what="a normal distribution around SFT, Yang et al. 2024",
    cost="probabilities averaged over {n} draws of the options' logits; it costs a forward pass"
    " over the fine-tuning rows, and for an answer one, with a backward pass for each option in"
    " both."
    " Over the vocabulary the trained model says how probable an option is at all",
)
class LaplaceLora(Baseline):
    """A normal distribution around SFT, from the curvature of its loss."""

    adapters = "matrices"


@register_baseline(
    "blob",
    label="BLoB",
    what="SFT with a distribution over A, Wang et al. 2024",
    cost="probabilities averaged over {n} draws of A, so an answer costs {n} times as much",
)
class Blob(Baseline):
    """SFT with a distribution over LoRA's A, trained from the beginning."""

    own_training = True


# Chosen on validation questions of a development seed (docs/baselines.md).
TOLERANCES = {"pseudo_nll": 1.5, "gold_nll": 1.5, "flips": 0.1}


@register_baseline(
    "tfb",
    label="TFB",
    what="the largest harmless noise on A of SFT, without training, Shi et al. 2024",
    cost="probabilities averaged over {n} draws of A, so an answer costs {n} times as much",
)
@dataclass(frozen=True)
class Tfb(Baseline):
    """The largest noise on A of a trained adapter that keeps its answers to the anchors.

    `criterion`: pseudo_nll and gold_nll are the relative change of the NLL of the adapter's own
    answers or of the right ones, flips the share of answers that change; at most `tolerance`, where
    0 stands for 1.5, 1.5 and 0.1.
    """

    of: str = "sft"
    layers: str = "all"
    criterion: str = "pseudo_nll"
    tolerance: float = 0.0
    anchors: int = 500
    low: float = 1e-4
    high: float = 1.0
    steps: int = 6

    def check(self) -> None:
        require(self.of in ("sft", "best_epoch"), "of", self.of, "sft or best_epoch")
        require(self.layers in ("all", "last"), "layers", self.layers, "all or last")
        known = self.criterion in TOLERANCES
        require(known, "criterion", self.criterion, " or ".join(TOLERANCES))
        require(self.tolerance >= 0, "tolerance", self.tolerance, "a number of at least 0")
        share = self.criterion == "flips"
        require(not share or self.tolerance < 1, "tolerance", self.tolerance, "a share below 1")
        require(self.anchors >= 1, "anchors", self.anchors, "a whole number of at least 1")
        require(0 < self.low < self.high, "low", self.low, f"a number between 0 and {self.high:g}")
        require(self.steps >= 1, "steps", self.steps, "a whole number of at least 1")

    @property
    def most(self) -> float:
        """The largest change that passes."""
        return self.tolerance or TOLERANCES[self.criterion]


@register_baseline(
    "ivon",
    label="IVON",
    what="SFT with a distribution over all LoRA parameters, Cong et al. 2024",
    cost="probabilities averaged over {n} draws of the adapter, so an answer costs {n} times as"
    " much",
)
@dataclass(frozen=True)
class IvonRow(IvonSettings, Baseline):
    """SFT by the optimizer IVON. `predict`: samples, an average over draws; mean, its adapter."""

    predict: str = "samples"

    own_training = True
    of_last_update = True

    def check(self) -> None:
        IvonSettings.check(self)
        require(self.predict in ("samples", "mean"), "predict", self.predict, "samples or mean")

    @property
    def optimizer(self) -> Ivon:
        """The optimizer with these settings."""
        return Ivon(**{field.name: getattr(self, field.name) for field in fields(IvonSettings)})


@register_baseline(
    "scalabl",
    label="ScalaBL",
    what="SFT with a distribution over the scales of LoRA's ranks, Samplawski et al. 2025",
    cost="probabilities averaged over {n} draws of the scales, so an answer costs {n} times as"
    " much",
)
@dataclass(frozen=True)
class ScalaBlRow(Baseline):
    """SFT with a distribution over one scale for each rank of each matrix. `rate`: step size of the
    descent on the divergence from the prior; `deviation`: the first standard deviation.
    """

    rate: float = 0.2
    deviation: float = 0.05

    own_training = True

    def check(self) -> None:
        require(self.rate >= 0, "rate", self.rate, "at least 0")
        require(self.deviation > 0, "deviation", self.deviation, "a number above 0")


@register_baseline(
    "ib_edl",
    label="IB-EDL",
    what="evidential loss with an information bottleneck, Li et al. 2025",
    cost="the mean of a Dirichlet distribution, averaged over {n} draws of noise after one forward"
    " pass. Over the vocabulary the model says how probable an option is at all",
)
@dataclass(frozen=True)
class IbEdlRow(Baseline):
    """SFT with an evidential loss: one pass gives the options a Dirichlet distribution.

    `beta` weighs the bottleneck, `draws` is the noise of a loss and of an answer, and `caution` the
    deviations by which an answer's evidence is lowered.
    """

    beta: float = 1e-5
    draws: int = 20
    caution: float = 0.0

    own_training = True
    single_token = True
    one_pass = True

    def check(self) -> None:
        require(self.beta >= 0, "beta", self.beta, "at least 0")
        require(self.draws >= 1, "draws", self.draws, "a whole number of at least 1")
        require(self.caution >= 0, "caution", self.caution, "at least 0")


@register_baseline(
    "start", label="Start", what="the model in which fine-tuning begins", cost="one forward pass"
)
class StartRow(Baseline):
    """The style-adapted model in which fine-tuning begins."""

    one_pass = True
    adapters = "any"


@register_baseline(
    "interpolation",
    label="Interpolation",
    what="weights between the start and SFT, Wortsman et al. 2022",
    cost="one forward pass with an adapter of twice the rank",
)
class InterpolationRow(Baseline):
    """Weights between the start and the comparison's sft, at the share with the lowest NLL."""

    one_pass = True
    adapters = "matrices"
