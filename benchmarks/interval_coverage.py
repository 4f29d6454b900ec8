"""How often do the intervals of `cogcalib_jax.metrics` and `.significance` hold the truth?

    python benchmarks/interval_coverage.py [--datasets 1000] [--resamples 500]

Draws test sets from populations whose true values are known (from 4,000,000 rows) and counts how
often each 95 % interval covers them. The tables of docs/metrics.md come from here.
"""

import argparse

import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.metrics.significance import paired_difference

TRUTH_ROWS = 4_000_000
OPTIONS = 4


def sharpened(probability: np.ndarray, slope: float) -> np.ndarray:
    """Confidence whose log-odds are `slope` times those of the true probability."""
    logit = slope * np.log(probability / (1 - probability))
    return 1 / (1 + np.exp(-logit))


def draw(rng: np.random.Generator, rows: int, slopes: tuple[float, float]) -> list[tuple]:
    """(confidence, correct) of two methods on the same questions; four of five answers agree."""
    chance = 0.25 + 0.74 * rng.beta(2, 1.5, rows)
    first = rng.random(rows) < chance
    second = np.where(rng.random(rows) < 0.8, first, rng.random(rows) < chance)
    return [
        (sharpened(chance, slope), hit.astype(float))
        for slope, hit in zip(slopes, (first, second), strict=True)
    ]


def option_columns(confidence: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """NLL and Brier score [rows] when the other options share the rest evenly."""
    rest = (1 - confidence) / (OPTIONS - 1)
    of_answer = np.where(correct == 1, confidence, rest)
    squares = confidence**2 + (OPTIONS - 1) * rest**2
    return {"nll": -np.log(of_answer), "brier": squares - 2 * of_answer + 1}


def single_intervals(datasets: int, resamples: int, rows: int) -> None:
    """Coverage of the intervals that `summarize` reports, and the bias of the ECE estimates."""
    rng = np.random.default_rng(rows)
    for slope in (1.0, 1.6):
        population = draw(rng, TRUTH_ROWS, (slope, slope))[0]
        truth = {k: v.mean() for k, v in option_columns(*population).items()} | {
            "accuracy": population[1].mean(),
            "confidence": population[0].mean(),
            "auroc": metrics.auroc(*population),
        }
        true_ece = metrics.ece(*population)
        covered = dict.fromkeys(truth, 0)
        plain, debiased, smooth = [], [], []
        for dataset in range(datasets):
            sample = draw(rng, rows, (slope, slope))[0]
            intervals = metrics.bootstrap_intervals(
                *sample, option_columns(*sample), resamples=resamples, seed=dataset
            )
            for name, (low, high) in intervals.items():
                covered[name] += low <= truth[name] <= high
            plain.append(metrics.ece(*sample))
            debiased.append(metrics.ece_debiased(*sample))
            smooth.append(metrics.ece_smooth(*sample))
        print(f"n {rows}, log-odds x {slope}: coverage", end="")
        print("".join(f", {k} {v / datasets:.3f}" for k, v in covered.items()))
        print(
            f"    true ECE {true_ece:.4f}; mean of ece {np.mean(plain):.4f}, "
            f"ece_debiased {np.mean(debiased):.4f}, ece_smooth {np.mean(smooth):.4f}",
            flush=True,
        )


def paired_intervals(datasets: int, resamples: int, rows: int) -> None:
    """Coverage of one-seed paired differences: ECE, AUROC, and the mean of a proper score."""
    rng = np.random.default_rng(rows)
    for slopes in ((2.0, 1.4), (2.0, 1.0), (1.4, 1.0), (1.0, 1.0), (1.6, 1.6)):
        population = draw(rng, TRUTH_ROWS, slopes)
        values = {"ece": [metrics.ece(*p) for p in population]}
        values["auroc"] = [metrics.auroc(*p) for p in population]
        values["mean"] = [option_columns(*p)["brier"].mean() for p in population]
        covered, below, shift = (dict.fromkeys(values, 0.0) for _ in range(3))
        for dataset in range(datasets):
            a, b = draw(rng, rows, slopes)
            for name, (true_a, true_b) in values.items():
                pair = (a, b)
                if name == "mean":
                    pair = tuple(option_columns(*p)["brier"] for p in pair)
                result = paired_difference(
                    [pair[0]], [pair[1]], statistic=name, resamples=resamples, seed=dataset
                )
                truth = true_a - true_b
                covered[name] += (result.low <= truth <= result.high) / datasets
                below[name] += (result.p_value < 0.05) / datasets
                shift[name] += (result.difference - truth) / datasets
        print(f"n {rows}, log-odds x {slopes}:", end=" ")
        for name, (true_a, true_b) in values.items():
            print(
                f"{name} {true_a:.4f} - {true_b:.4f} bias {shift[name]:+.4f} "
                f"coverage {covered[name]:.3f} p<.05 {below[name]:.3f}",
                end="; ",
            )
        print(flush=True)


def seed_intervals(datasets: int, resamples: int, rows: int) -> None:
    """Coverage of the mean difference when seeds vary: question, seed and residual effects."""
    rng = np.random.default_rng(rows)
    for seeds in (3, 5, 10):
        for seed_noise in (0.0, 0.02, 0.1):
            covered = 0
            for dataset in range(datasets):
                question = rng.normal(0, 0.3, rows)
                effect = rng.normal(0, seed_noise, (seeds, 1))
                a = 0.01 + effect + question + rng.normal(0, 0.3, (seeds, rows))
                result = paired_difference(
                    list(a), [np.zeros(rows)] * seeds, resamples=resamples, seed=dataset
                )
                covered += result.low <= 0.01 <= result.high
            print(
                f"n {rows}, {seeds} seeds, spread of seeds {seed_noise}: "
                f"coverage {covered / datasets:.3f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=1000, help="test sets per population")
    parser.add_argument("--resamples", type=int, default=500, help="resamples per interval")
    args = parser.parse_args()
    for rows in (500, 1500):
        single_intervals(args.datasets, args.resamples, rows)
        paired_intervals(args.datasets, args.resamples, rows)
        seed_intervals(args.datasets, args.resamples, rows)


if __name__ == "__main__":
    main()
