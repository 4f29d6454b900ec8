"""Answers of a model to questions: scores, losses, texts, predictions and their metrics.

May import `hf`, `data`, `calibration` and the rooms below them; knows no run.
"""
