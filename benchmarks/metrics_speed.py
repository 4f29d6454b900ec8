"""Time and memory of `summarize`: every metric, the noise floor and the bootstrap.

python benchmarks/metrics_speed.py [--rows 1000000] [--options 4] [--resamples 1000]
"""

import argparse
import resource
import time

import numpy as np

from cogcalib_jax import metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--options", type=int, default=4)
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(args.options), args.rows).astype(np.float32)
    chance = rng.random((args.rows, 1))
    answers = (np.cumsum(probs, axis=1) / probs.sum(axis=1, keepdims=True) > chance).argmax(axis=1)
    mask = np.ones(probs.shape, bool)
    for attempt in ("first", "compiled"):
        start, cpu = time.perf_counter(), time.process_time()
        metrics.summarize(probs, mask, answers, 0.9 * probs, resamples=args.resamples)
        wall, busy = time.perf_counter() - start, time.process_time() - cpu
        print(f"{attempt}: {wall:.1f} s, {busy:.1f} s of processor time", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
