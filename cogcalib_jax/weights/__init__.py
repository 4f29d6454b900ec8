"""Weights in and out: Hugging Face checkpoints and PEFT adapters, without torch."""
