"""Measurements of this machine: training steps, evaluation, loading.

The programs load `train_step`, `evaluation` and `loading` by name; `timing` and `hardware` may be
imported by the rooms above.
"""
