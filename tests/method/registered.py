"""The names that the package itself registers: other tests of the process may have added theirs."""

from cogcalib_jax.registry import Registry


def own_names(registry: Registry) -> list[str]:
    """Return the names of the classes that are defined in the package."""
    return [entry.name for entry in registry if entry.cls.__module__.startswith("cogcalib_jax.")]
