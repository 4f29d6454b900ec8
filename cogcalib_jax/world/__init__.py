"""The made-up world of task "world": settings, corpus and questions, and the base that reads it.

`config` and `corpus` may be imported without JAX; `base` needs it.
"""
