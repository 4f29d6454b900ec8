"""Training: the loop over the jitted step, refits, and the pretraining of the world's base."""
