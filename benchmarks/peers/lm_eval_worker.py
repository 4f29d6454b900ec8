"""lm-evaluation-harness with its Hugging Face backend, asked line by line; see lm_eval.py.

Reads JSON lines: first `{"model": FOLDER}`, then `{"requests": [[context, continuation], ...]}`
once per set of requests, then `{"run": BATCH_SIZE}` as often as wanted, and `{"reference": [PLACE,
...]}`, which scores those requests in float64, one by one. Answers each with a line.
Runs without this project, and must be started with `python -P`: a script's folder comes first on
Python's path otherwise, and there `lm_eval` is another file.
"""

import json
import logging
import os
import resource
import sys
import time
from importlib.metadata import version

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

PACKAGES = ("lm_eval", "torch", "transformers")


def load(folder: str, dtype: str) -> HFLM:
    return HFLM(pretrained=folder, dtype=dtype, device="cpu")


def answer(message: dict) -> None:
    print(json.dumps(message), file=out, flush=True)


# Whatever the libraries print goes to stderr: stdout is for answers.
out, sys.stdout = sys.stdout, sys.stderr
logging.disable(logging.WARNING)
model, instances = None, []
for line in sys.stdin:
    order = json.loads(line)
    if "model" in order:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        start = time.perf_counter()
        model = load(folder := order["model"], "float32")
        versions = {name: version(name) for name in PACKAGES}
        answer({"seconds": time.perf_counter() - start, "versions": versions})
    elif "requests" in order:
        instances = [
            Instance("loglikelihood", {}, (context, continuation), i)
            for i, (context, continuation) in enumerate(order["requests"])
        ]
        answer({"ids": [model._encode_pair(*instance.args) for instance in instances]})
    elif "reference" in order:
        exact = load(folder, "float64")
        exact.batch_size_per_gpu = 1
        chosen = [instances[place] for place in order["reference"]]
        scored = exact.loglikelihood(chosen, disable_tqdm=True)
        answer({"logprobs": [r[0] for r in scored]})
        del exact
    else:
        model.batch_size_per_gpu = order["run"]
        start = time.perf_counter()
        results = model.loglikelihood(instances, disable_tqdm=True)
        seconds = time.perf_counter() - start
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer({"seconds": seconds, "logprobs": [r[0] for r in results], "peak_bytes": peak})
