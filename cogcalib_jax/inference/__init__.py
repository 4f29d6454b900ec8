"""What a model says about questions: scores, losses, answers, predictions and their metrics.

May import `hf`, `data`, `calibration` and the rooms below them; knows no run.
"""
