"""Baselines: MC-dropout, ensembles, Laplace-LoRA, BLoB, TFB, IVON, ScalaBL, IB-EDL (`rows`).

May import `training` and the rooms below it. What may change in an update is `training.variant`.
"""
