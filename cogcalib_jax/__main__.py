"""`python -m cogcalib_jax` is the console command `cogcalib`."""

from cogcalib_jax.cli import run

if __name__ == "__main__":
    run()
