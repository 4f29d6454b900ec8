"""Calibrated LoRA fine-tuning of language models in JAX (CogCalib and its baselines).

The public names are those of `__init__.pyi`; each is imported when it is first used.
"""

import os

import lazy_loader

# Only its tokenizers are used here: the advice to install PyTorch would be a run's first line.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
