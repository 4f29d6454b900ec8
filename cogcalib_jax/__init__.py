"""Calibrated LoRA fine-tuning of language models in JAX (CogCalib and its baselines)."""

__version__ = "0.1.0"
