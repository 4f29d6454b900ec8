"""The compute core: row statistics, forward passes, the jitted step, checkpoints."""
