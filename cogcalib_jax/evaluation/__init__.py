"""From a model and a split to predictions, and from predictions to numbers."""
