"""Studies over several runs: sweeps on validation, published tables."""
