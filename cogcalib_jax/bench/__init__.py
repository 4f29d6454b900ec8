"""A step compiled for absent accelerators, and the command around a measurement.

`compile` makes a step from shapes alone, and `plan` is the command. Speed is measured by the
scripts in benchmarks/.
"""
