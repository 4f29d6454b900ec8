"""Values of a row as JSON has them, so that every file that is written is strict JSON."""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from cogcalib_jax.data.example import BadRow

# Readers of JSON in other languages hold numbers as float64, which is exact up to here.
_EXACT = 2**53


def as_json(value: Any) -> Any:
    """Return `value` as nested dicts, lists, texts, finite numbers, booleans and None.

    Dates, times and durations become ISO 8601 text, decimals and integers beyond 2**53 become text
    with all their digits, bytes become base64, NaN and infinities become None.

    Raises:
        BadRow: the value has a type that JSON has no form for.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Half a character cannot be written as UTF-8; its escape can.
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int):
        return int(value) if abs(value) <= _EXACT else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {as_json(str(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if hasattr(value, "isoformat"):  # dates and times, also those of pandas
        return value.isoformat()
    if isinstance(value, timedelta):
        seconds = Decimal(value // timedelta(microseconds=1)).scaleb(-6)
        return f"PT{seconds.normalize():f}S"
    if isinstance(value, uuid.UUID):
        return str(value)
    raise BadRow(f"holds a value of type {type(value).__name__}, for which JSON has no form")
