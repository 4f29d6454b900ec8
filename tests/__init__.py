"""Tests, and how they compile."""

import os
from importlib.metadata import version

# Compiling is most of the tests' time: a gradient of a small model takes 0.3 s of it with these
# flags of XLA, and 3.3 s without them, as users' programs have it.
QUICK = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # XLA stops at a flag that it does not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
if os.environ.get("TESTS_OPTIMISED"):
    QUICK = ""
