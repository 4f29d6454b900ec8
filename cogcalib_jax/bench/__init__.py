"""Measurements of this machine, and a step compiled for absent accelerators.

The programs load `train_step`, `evaluation`, `loading` and `plan` by name. `compile` makes a step
from shapes alone.
"""
