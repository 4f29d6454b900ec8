"""The interface of calibrators: fit and transform as in scikit-learn, JSON, and the registry."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics.checks import (
    PROBABILITY_SLACK,
    FloatArray,
    IntArray,
    InvalidRows,
    check_answers,
    check_scores,
)
from cogcalib_jax.registry import Registry

log = logging.getLogger(__name__)

KIND = "calibrator"
"""the key of the name in JSON"""


@dataclass(frozen=True)
class OptionRows:
    """Checked scores of `n` questions with up to `k` options."""

    scores: FloatArray
    """[n, k] float64: log-probabilities in nats, up to a constant a row; absent options are -inf"""
    labels: IntArray | None = None
    """[n] int64: index of the right option; None to transform"""
    start_scores: FloatArray | None = None
    """like `scores`, of the start; only for calibrators that need it"""
    weights: FloatArray | None = None
    """[n] float64, at least 0, of the rows in a fit; None: all alike"""

    @property
    def mask(self) -> np.ndarray:
        """The options that exist, [n, k] bool."""
        return np.isfinite(self.scores)

    def of_labels(self, values: FloatArray) -> FloatArray:
        """Return the entries [n] of `values` [n, k] that belong to the right options."""
        assert self.labels is not None
        return values[np.arange(len(values)), self.labels]

    def mean(self, values: FloatArray) -> FloatArray:
        """Return the weighted mean of `values` [n, ...] over the rows."""
        return np.average(values, axis=0, weights=self.weights)


class Calibrator(ABC):
    """A map from option scores to probabilities that is fitted on labelled, held-out questions.

    Subclass it, add settings as fields with defaults, name in `fitted` the attributes that a fit
    sets, and register the class with `register_calibrator`. It may define `check(self)`, which
    raises ValueError for settings out of range.

    Scores are log-probabilities of the options in nats, up to a constant for each row. Attributes
    that end in `_` exist after `fit`.
    """

    needs_start: ClassVar[bool] = False
    """whether it needs `start_scores`: a second pass with the start's adapter"""
    needs_classes: ClassVar[bool] = False
    """whether all questions must have one list of options"""
    needs_labels: ClassVar[bool] = True
    """whether a fit reads which option is right"""
    weighs_rows: ClassVar[bool] = False
    """whether a fit reads the weights of rows (`OptionRows.weights`)"""
    fitted: ClassVar[Mapping[str, int]] = {}
    """attributes that `fit` sets, each with its number of axes: 0 for a float, else float64"""

    converged_: bool
    """False if the best value was not reached; see `warning`"""
    n_rows_: int
    """number of rows it was fitted on"""

    @abstractmethod
    def _fit(self, rows: OptionRows) -> bool:
        """Set the attributes of `fitted` from labelled rows; return whether the fit converged."""

    @abstractmethod
    def _transform(self, rows: OptionRows) -> FloatArray:
        """Return probabilities [n, k] float64, 0 for absent options."""

    def _check_fitted(self) -> None:  # noqa: B027 - most have nothing to check
        """Raise ValueError if attributes that were read from JSON cannot be applied."""

    @property
    def warning(self) -> str | None:
        """A sentence on what is wrong with the fit; None for an ordinary one."""
        if self.converged_:
            return None
        return f"{self.name}: the fit on {self.n_rows_:,} calibration questions did not converge"

    @property
    def name(self) -> str:
        """The registered name, or the name of a class that is not registered."""
        cls = type(self)
        return next((entry.name for entry in CALIBRATORS if entry.cls is cls), cls.__name__)

    def fit(
        self,
        scores: ArrayLike,
        labels: ArrayLike | None,
        *,
        mask: ArrayLike | None = None,
        start_scores: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Fit it on held-out questions, and return it.

        Args:
            scores: `[n, k]` float, log-probabilities in nats, up to a constant for each row.
            labels: `[n]` int, index of the right option; None if not `needs_labels`.
            mask: `[n, k]` bool, the options that exist, or their numbers `[n]`; None: all.
            start_scores: `[n, k]` float, scores of the start; read only if `needs_start`.
            weights: `[n]` float, at least 0, of the rows; see `equal_weights`. None: all alike.

        Raises:
            InvalidRows: arrays of other shapes, scores that are not finite, labels of no option.
            UserError: rows that it cannot be fitted on.
        """
        if labels is None and self.needs_labels:
            raise InvalidRows(f"labels is None; expected the right options: {self.name} is fitted")
        if weights is not None and not self.weighs_rows:
            raise InvalidRows(f"weights is given; expected None: {self.name} weighs all rows alike")
        rows = self._rows(scores, labels if self.needs_labels else None, mask, start_scores)
        return self._fitted_on(replace(rows, weights=_check_weights(weights, len(rows.scores))))

    def transform(
        self,
        scores: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        start_scores: ArrayLike | None = None,
    ) -> FloatArray:
        """Return probabilities `[n, k]` float64, 0 where `mask` is False; arguments as for `fit`.

        Raises:
            ValueError: it is not fitted.
            InvalidRows: as `fit`.
            UserError: probabilities that are not numbers, as from a stored fit that was changed.
        """
        self._require_fitted()
        return self._probabilities(self._transform, self._rows(scores, None, mask, start_scores))

    __call__ = transform

    def fit_transform(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        start_scores: ArrayLike | None = None,
    ) -> FloatArray:
        """Fit it, and return `transform` of the same rows."""
        self.fit(scores, labels, mask=mask, start_scores=start_scores)
        return self.transform(scores, mask=mask, start_scores=start_scores)

    def to_json(self) -> dict[str, Any]:
        """Return `{"calibrator": NAME, setting: ..., fitted_: ...}` for `from_json`.

        Raises ValueError if it is not fitted, or its class not registered.
        """
        self._require_fitted()
        if self.name not in CALIBRATORS:
            raise ValueError(f"{self.name} is not registered; use register_calibrator first")
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {key: getattr(self, key) for key in (*self.fitted, "converged_", "n_rows_")}
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}
        return {KIND: self.name, **settings, **plain}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Calibrator:
        """Return the calibrator that `to_json` wrote; its probabilities are the same, bit for bit.

        Raises:
            UserError: an unknown name, or keys or values that no calibrator of that name has.
        """
        if not isinstance(stored, Mapping):
            raise UserError(f"{KIND} is {stored!r:.40}; expected an object; fit it again")
        name = stored.get(KIND)
        if not isinstance(name, str) or name not in CALIBRATORS:
            raise UserError(
                f"{KIND} is {name!r:.40}; expected one of {', '.join(CALIBRATORS.names())};"
                " register its class first, if it is your own"
            )
        cls = CALIBRATORS[name].cls
        settings = {field.name: type(field.default) for field in fields(cls)}
        kinds = settings | dict(cls.fitted) | {"converged_": bool, "n_rows_": int}
        values = {key: value for key, value in stored.items() if key != KIND}
        if values.keys() != kinds.keys():
            raise UserError(
                f"{KIND} {name} has {', '.join(values):.200}; expected {', '.join(kinds)}; fit it"
                " again"
            )
        read = {key: _value(name, key, value, kinds[key]) for key, value in values.items()}
        made = CALIBRATORS.make(cls(**{key: read.pop(key) for key in settings}))
        for key, value in read.items():
            setattr(made, key, value)
        try:
            made._check_fitted()
        except ValueError as error:
            raise UserError(f"{KIND} {name}: {error}; fit it again") from error
        return made

    def _fitted_on(self, rows: Any) -> Self:
        if check := getattr(self, "check", None):
            check()
        self.converged_ = bool(self._fit(rows))
        self.n_rows_ = len(rows.scores)
        if self.warning is not None:
            log.warning("%s", self.warning)
        return self

    def _probabilities(self, function: Callable[[Any], FloatArray], rows: Any) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            probs = function(rows)
        if not np.isfinite(probs).all():
            raise UserError(
                f"{KIND} {self.name} gives no probabilities (not a number) for these scores; fit it"
                " again"
            )
        return probs

    def _require_fitted(self) -> None:
        if not hasattr(self, "n_rows_"):
            raise ValueError(f"{type(self).__name__} is not fitted; call fit(scores, labels) first")

    def _rows(
        self,
        scores: ArrayLike,
        labels: ArrayLike | None,
        mask: ArrayLike | None,
        start_scores: ArrayLike | None,
    ) -> OptionRows:
        checked = check_scores(scores, "scores", mask)
        exist = np.where(np.isfinite(checked), checked, 0.0)
        sums_to_1 = np.abs(exist.sum(-1) - 1) < PROBABILITY_SLACK
        if (exist >= 0).all() and sums_to_1.all() and (exist % 1 != 0).any():
            raise InvalidRows(
                "scores are probabilities, which sum to 1 in every row: expected their logarithms."
                " Give np.log(scores)"
            )
        start = None
        if self.needs_start:
            if start_scores is None:
                raise InvalidRows(
                    f"start_scores is None; expected {list(checked.shape)} numbers, for"
                    f" {self.name} mixes the model with its start; score the start, too"
                )
            shape = np.shape(start_scores)
            if shape != checked.shape:
                raise InvalidRows(f"start_scores has shape {shape}: expected {checked.shape}")
            start = check_scores(start_scores, "start_scores", mask)
        answers = None
        if labels is not None:
            answers = check_answers(labels, np.isfinite(checked), "labels")
        return OptionRows(checked, answers, start)

    def _require_width(self, rows: OptionRows, width: int) -> None:
        """Raise InvalidRows unless the rows have as many options as the fitted ones."""
        if rows.scores.shape[1] != width:
            raise InvalidRows(
                f"scores has {rows.scores.shape[1]} options: expected {width}, as {self.name} was"
                " fitted on"
            )


CALIBRATORS: Registry[Calibrator] = Registry("calibrator", fitted=True)
register_calibrator = CALIBRATORS.register


def equal_weights(sizes: Sequence[int]) -> FloatArray:
    """Return weights of rows `[sum of sizes]` that give every group of rows the same weight."""
    return np.concatenate([np.full(size, 1.0 / (len(sizes) * size)) for size in sizes])


def _check_weights(weights: ArrayLike | None, rows: int) -> FloatArray | None:
    if weights is None:
        return None
    found = np.asarray(weights, np.float64)
    if found.shape != (rows,):
        raise InvalidRows(f"weights has shape {found.shape}: expected {(rows,)}")
    if not (np.isfinite(found).all() and (found >= 0).all() and found.sum() > 0):
        raise InvalidRows("weights has a negative, infinite or no positive value: expected weights")
    return found


def refuse_without_mistake(name: str, rows: int) -> UserError:
    """Return the error for rows without a wrong answer, for which no finite fit exists."""
    return UserError(
        f"{name}: all {rows} calibration questions are answered correctly, so the best temperature"
        " is 0; use a larger calibration split (data.calibration_rows)"
    )


def _value(name: str, key: str, value: Any, kind: type | int) -> Any:
    """A stored setting of type `kind`, or a fitted array with `kind` axes; raises UserError."""
    if isinstance(kind, int):
        wanted = "finite numbers" if kind else "a finite number"
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            array = np.array(np.nan)
        good = array.ndim == kind and np.isfinite(array).all() and not isinstance(value, bool | str)
        read = array if kind else float(array.flat[0]) if array.size else None
    else:
        wanted = kind.__name__
        whole = kind is float and type(value) is int
        good, read = type(value) is kind or whole, float(value) if whole else value
    if not good:
        raise UserError(f"{KIND} {name}: {key} is {value!r:.40}; expected {wanted}; fit it again")
    return read
