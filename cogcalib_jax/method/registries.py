"""The names of terms and gates. The modules that define them register themselves when asked for.

A config, its help and a report know a method by its name: they need no JAX until a name is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cogcalib_jax.registry import Registry

if TYPE_CHECKING:
    from cogcalib_jax.method.gates import Gate
    from cogcalib_jax.method.terms import Term

TERMS: Registry[Term] = Registry("term", module="cogcalib_jax.method.terms")
GATES: Registry[Gate] = Registry("gate", module="cogcalib_jax.method.gates")
