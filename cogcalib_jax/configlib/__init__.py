"""Strict YAML presets and dotted options, read into nested frozen dataclasses.

`loading` builds a config and prints its help, `sources` reads YAML and arguments, `values` converts
text. The fields themselves are in `cogcalib_jax.settings`; nothing here knows a field of a room.
"""
