"""Calibrated LoRA fine-tuning of language models in JAX (CogCalib and its baselines).

The public names are those of `__init__.pyi`; each is imported when it is first used.
"""

import os
from importlib.metadata import version

import lazy_loader

# Only its tokenizers are used here: the advice to install PyTorch would be a run's first line.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# On CPUs, jaxlib 0.10.2 compiles some fused reductions wrongly: with an axis of directions in front
# (a vmapped gradient), all but the first come out wrong, without a word. Neither the version before
# nor the ones after do (tests/test_xla.py).
if version("jaxlib") == "0.10.2":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_REDUCE"
    ).strip()

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
