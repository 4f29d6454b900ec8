"""What a user starts: a training run, a comparison of methods, an evaluation."""
