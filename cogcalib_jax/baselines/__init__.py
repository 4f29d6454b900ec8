"""Baselines that average over models: MC-dropout, ensembles, Laplace-LoRA.

May import `inference` and the rooms below it. BLoB's prior is in `training.blob`.
"""
