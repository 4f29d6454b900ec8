"""The method itself: loss terms, the knownness gate, the threshold fit and their configuration."""
