"""Training steps compiled ahead of time for accelerators that are not here.

Import `command` for `bench.py plan`, and `compile` for a step from shapes alone.
"""
