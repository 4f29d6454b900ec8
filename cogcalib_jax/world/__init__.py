"""The made tasks: the world, its corpus and the base that reads it; facts about invented people.

`config`, `corpus` and `facts` may be imported without JAX; `base` needs it.
"""
