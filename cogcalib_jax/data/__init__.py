"""Rows, splits, prompts, token ids and batches."""
