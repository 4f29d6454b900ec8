"""One file per schema: a stored row becomes an `Example`."""
