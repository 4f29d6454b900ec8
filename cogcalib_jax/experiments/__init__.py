"""Over whole runs: studies, tuning on validation, benchmarks, plans."""
