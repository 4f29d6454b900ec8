"""Calibrated LoRA fine-tuning of language models in JAX (CogCalib and its baselines)."""

import os

# Only its tokenizers are used here: the advice to install PyTorch would be a run's first line.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
