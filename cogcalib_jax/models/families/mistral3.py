"""Mistral Small 3.1 and 3.2, and Ministral 3 as published: a text half beside a vision tower."""

from __future__ import annotations

from cogcalib_jax.models.families import ministral3, mistral
from cogcalib_jax.models.families.base import TextHalf

FAMILY = TextHalf(
    models="the text half of Mistral Small 3 and Ministral 3",
    families={"mistral": mistral.FAMILY, "ministral3": ministral3.FAMILY},
)
