"""Agreement of predicted with true severity, in the measures of plant pathology.

A model that predicts twice the true severity has a perfect correlation. Lin's
concordance also accounts for bias: it is correlation times a bias factor.

Axes: h row, w column, n image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, UInt8

from plantseg_next.evaluation.intervals import Estimate, bootstrap_rows
from plantseg_next.structures import IGNORE, Prediction, Sample

Severity = Callable[
    [UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"] | None], float | None
]
"""Computes severity in % of the leaf from lesion and leaf masks; ``None`` if undefined."""

NORMAL_95 = 1.959963984540054
"""Standard deviations on each side of the mean that contain 95 % of a normal sample."""

FEWEST = 3
"""Least number of images for concordance and correlation."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted with true severity, in points of severity.

    Args:
        n: Images with both values.
        rho_c: Lin's concordance, in [-1, 1]; NaN for fewer than three images, or
            where the truth does not vary. It is 0 where the truth varies and the
            prediction does not.
        r: Pearson correlation (precision); NaN also where the prediction is constant.
        c_b: Bias correction factor (accuracy), in (0, 1], 1 for neither shift nor
            change of scale; ``rho_c = r * c_b``. NaN where ``r`` is.
        rmse: Root mean square error; NaN without images.
        mean_difference: Mean of predicted minus true; NaN without images.
        limit_low: Lower Bland-Altman 95 % limit of agreement; NaN below two images.
        limit_high: Upper limit.
    """

    n: int
    rho_c: float
    r: float
    c_b: float
    rmse: float
    mean_difference: float
    limit_low: float
    limit_high: float


def concordance(
    truth: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " n"]
) -> float:
    """Return Lin's concordance correlation coefficient.

    Returns:
        Coefficient in [-1, 1]; NaN below three pairs or where ``truth`` is constant.

    Source:
        Lin 1989, Biometrics 45:255, with variances and covariance over n as there. With
        n - 1, which some programs use, it differs by O(1/n) where the means differ. The
        correction in Lin 2000, Biometrics 56:324, is of the standard error, which is
        not used here: intervals come from the bootstrap.

    Example:
        >>> round(concordance(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])), 4)
        0.5714
    """
    if truth.size < FEWEST or _is_constant(truth):
        return math.nan
    shift = predicted.mean() - truth.mean()
    covariance = ((truth - truth.mean()) * (predicted - predicted.mean())).mean()
    spread = truth.var() + predicted.var() + shift**2
    return float(2.0 * covariance / spread)


def severity_agreement(
    truth: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " n"]
) -> Agreement:
    """Return concordance, its parts, the error and the limits of agreement.

    Args:
        truth: Severity in % of the leaf; NaN where unknown.
        predicted: Predicted severity. Pairs with a NaN are left out.

    Source:
        Lin 1989 (see ``concordance``) for ``rho_c`` and ``c_b``; Bland and Altman 1986,
        Lancet 327:307, for the limits: mean difference plus and minus 1.96 standard
        deviations of the differences, over n - 1.
    """
    known = ~(np.isnan(truth) | np.isnan(predicted))
    truth, predicted = truth[known], predicted[known]
    n, difference = int(truth.size), predicted - truth
    center = float(difference.mean()) if n else math.nan
    half = NORMAL_95 * float(difference.std(ddof=1)) if n > 1 else math.nan
    rho_c, r, c_b = concordance(truth, predicted), math.nan, math.nan
    if not (math.isnan(rho_c) or _is_constant(predicted)):
        r = float(np.corrcoef(truth, predicted)[0, 1])
        scale = float(truth.std() / predicted.std())
        shift_2 = center**2 / float(truth.std() * predicted.std())
        c_b = 2.0 / (scale + 1.0 / scale + shift_2)
    return Agreement(
        n=n,
        rho_c=rho_c,
        r=r,
        c_b=c_b,
        rmse=float(np.sqrt(np.mean(difference**2))) if n else math.nan,
        mean_difference=center,
        limit_low=center - half,
        limit_high=center + half,
    )


@dataclass(eq=False)
class SeverityAgreement:
    """Agreement of predicted with true severity, over the images whose leaf is marked.

    Sums are not enough for it: it keeps two numbers of every image. Pixels that are unknown
    in the truth are excluded from the predicted severity too.

    Args:
        severity: Computes severity; used for both truth and prediction.
        pairs: True and predicted severity of every image in % of the leaf; NaN where
            undefined.
    """

    severity: Severity
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def update(self, truth: Sample, prediction: Prediction) -> None:
        """Add an image."""
        self.pairs.append(self._severities(truth, prediction))

    def merge(self, other: "SeverityAgreement") -> None:
        """Add the images of another object, after those of this one."""
        self.pairs += other.pairs

    def compute(self) -> Agreement:
        """Return the agreement over the images with both values."""
        return severity_agreement(*self._columns.T)

    @property
    def n_without(self) -> int:
        """Images with a true severity but no predicted one."""
        defined = ~np.isnan(self._columns)
        return int((defined[:, 0] & ~defined[:, 1]).sum())

    def rho_c(self, groups: Sequence[str], *, seed: int = 0) -> Estimate:
        """Return Lin's concordance with its interval.

        Args:
            groups: Group of each image.
            seed: Seed of the interval.
        """
        usable = ~np.isnan(self._columns).any(axis=1)

        def statistic(resampled: Float64[np.ndarray, "n 2"]) -> float:
            return concordance(resampled[:, 0], resampled[:, 1])

        interval = bootstrap_rows(
            self._columns[usable],
            [group for group, use in zip(groups, usable, strict=True) if use],
            statistic,
            seed=seed,
        )
        return Estimate(self.compute().rho_c, *interval)

    @property
    def _columns(self) -> Float64[np.ndarray, "n 2"]:
        return np.array(self.pairs, np.float64).reshape(-1, 2)

    def _severities(self, truth: Sample, prediction: Prediction) -> tuple[float, float]:
        """Return true and predicted severity; NaN where undefined."""
        leaf = prediction.leaf
        if (truth.lesion == IGNORE).all() or (truth.leaf == IGNORE).all():
            return math.nan, math.nan
        of_truth = self.severity(truth.lesion, truth.leaf)
        of_prediction = None
        if leaf is not None:
            lesion = np.where(truth.lesion == IGNORE, truth.lesion, prediction.lesion)
            leaf = np.where(truth.leaf == IGNORE, truth.leaf, leaf)
            of_prediction = self.severity(lesion, leaf)
        return (
            math.nan if of_truth is None else of_truth,
            math.nan if of_prediction is None else of_prediction,
        )


def _is_constant(values: Float64[np.ndarray, " n"]) -> bool:
    return bool(np.ptp(values) == 0)  # the variance of equal floats need not be 0
