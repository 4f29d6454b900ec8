"""Baselines: MC-dropout, ensembles, Laplace-LoRA, BLoB, TFB, IVON, ScalaBL, IB-EDL (`rows`).

May import `training` and the rooms below it. What changes an update is in
`training` (`variant`, `blob`, `optimizers`, `scalabl`, `ib_edl`).
"""
