"""Training: the two phases, the jitted step, refits, validation, callbacks and checkpoints.

May import `inference` and the rooms below it; knows no run folder and no command line.
"""
