"""Healthy mean and SD of the evidence given the age and sex of the subject: a normative model.

Ventricles widen and the cortex thins with age. Against healthy subjects of all ages, the evidence of an old subject
is high where nothing is wrong. In each voxel the smoothed map y is therefore regressed on age and sex over the
healthy scans, and the standardised map is

    z = (y − b₀ − b₁ a − b₂ s) / (σₑ · exp(g · (a − ā)))

a is the age in decades from 50 years, limited to the ages of the healthy subjects; s is ½ for male, −½ for female
and 0 for unknown; σₑ is the SD of the residual, ā the mean of a. A subject of unknown age is compared with the mean
and SD of all ages.

The slopes of all voxels share a normal prior of mean 0 and variance τ² σₑ², which gives ridge regression with the
penalty 1/τ². τ² is estimated for each map and covariate from all voxels (empirical Bayes, method of moments): the
mean of t² of the least-squares slopes, in units of σₑ, is τ² plus their sampling variance. Where a map does not
depend on a covariate, its slope is 0.

g is fitted to healthy scans that the detector did not learn from: the evidence of the training scans may even fall
with age, because principal components fit the old subjects best, who differ most. These scans are few. g is
therefore the median of the slopes between pairs of scans (Theil–Sen) of the logarithm of the scan score on age, so
that one poor scan does not matter, times max(0, 1 − SE²/g²), which is 0 for a slope that may be chance. g is fixed
before the calibration. The calibrated score is then a fixed function of the scan and of the age and sex of its
subject, and the false-positive rate holds.

Sources: Marquand et al. 2016, "Understanding heterogeneity in clinical cohorts using normative models", Biological
Psychiatry 80:552; Rutherford et al. 2022, "The normative modeling framework for computational psychiatry", Nature
Protocols 17:1711. Empirical Bayes: Efron & Morris 1973, "Stein's estimation rule and its competitors", Journal of
the American Statistical Association 68:117. Theil–Sen: Sen 1968, "Estimates of the regression coefficient based on
Kendall's tau", Journal of the American Statistical Association 63:1379.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from anomaly.core.covariates import OLDEST_REPORTED_AGE, reported_age
from anomaly.core.errors import ConfigError
from anomaly.core.results import HealthyGroup
from anomaly.core.smoothing import smooth_inside
from anomaly.core.volume import FloatArray, MaskArray

Floats = npt.NDArray[np.float64]

CENTRE_YEARS = 50.0
YEARS_PER_UNIT = 10.0
N_COEFFICIENTS = 3  # constant, age, sex
MIN_SCANS = 20  # of known age, ten for each slope; and that must cover a voxel for it to have coefficients
MIN_COVERAGE = 0.25  # share of these scans that must cover a voxel for it to have coefficients
MIN_PENALTY = 1e-3  # of a slope; makes the regression solvable where all subjects have the same sex
MAX_PENALTY = 1e9  # of a slope of a map that does not depend on the covariate
MIN_HELD_OUT = 8  # scans of known age, to fit the growth of the SD
CONFIDENCE = 0.95
PREFIX = "normative."


@dataclass(frozen=True, eq=False)
class NormativeModel:
    """How the healthy mean and SD of each map depend on age and sex.

    Parameters
    ----------
    coefficients
        Map name → float16 ``(3, I, J, K)``: what is added to the mean of all ages, per unit of :func:`design`, in
        SDs of all ages.
    sd_ratio
        Map name → float16 ``(I, J, K)``: SD given age and sex, as a share of the SD of all ages.
    age_range
        Youngest and oldest healthy subject, years.
    mean_age
        Of the healthy subjects, years.
    sd_growth
        g: the logarithm of the factor by which the SD grows per decade.
    """

    coefficients: Mapping[str, npt.NDArray[np.float16]]
    sd_ratio: Mapping[str, npt.NDArray[np.float16]]
    age_range: tuple[float, float]
    mean_age: float
    sd_growth: float = 0.0

    def design(self, covariates: FloatArray) -> Floats | None:
        """Return 1, age and sex as the regression takes them, the age within the range; None if it is unknown."""
        age = self._age(covariates)
        return None if age is None else design(np.array([age, covariates[1]]))

    def group(self, covariates: FloatArray) -> HealthyGroup:
        """Return the healthy subjects with whom a subject of these covariates is compared."""
        age, is_male = self._age(covariates), float(covariates[1])
        sex = "" if age is None or np.isnan(is_male) else ("male" if is_male else "female")
        youngest, oldest = (float(np.floor(years)) for years in self.age_range)
        return HealthyGroup(reported_age(float(covariates[0])), reported_age(age), sex, (youngest, oldest))

    def adjust(self, name: str, z: FloatArray, x: Floats) -> FloatArray:
        """Return a map ``(I, J, K)`` in SDs given age and sex, but for the growth of the SD.

        Parameters
        ----------
        z
            The map in SDs of all ages.
        x
            ``(3,)``, of :meth:`design`.
        """
        expected = np.tensordot(x.astype(np.float32), self.coefficients[name].astype(np.float32), axes=1)
        return np.asarray((z - expected) / self.sd_ratio[name].astype(np.float32), dtype=np.float32)

    def sd_factor(self, covariates: FloatArray) -> float:
        """Return how much larger the SD is at the age of a subject than at the mean age; 1 for unknown age."""
        age = self._age(covariates)
        return 1.0 if age is None else float(np.exp(self.sd_growth * (age - self.mean_age) / YEARS_PER_UNIT))

    def _age(self, covariates: FloatArray) -> float | None:
        """Return the age at which the reference is read: that of the subject, within the range of the reference."""
        age = float(covariates[0])
        return None if np.isnan(age) else float(np.clip(age, *self.age_range))

    def arrays(self) -> dict[str, npt.NDArray[np.floating]]:
        """Return what is saved, by name."""
        coefficients = {f"{PREFIX}mean.{name}": values for name, values in self.coefficients.items()}
        ratios = {f"{PREFIX}sd.{name}": values for name, values in self.sd_ratio.items()}
        age = np.array([*self.age_range, self.mean_age, self.sd_growth])
        return {**coefficients, **ratios, f"{PREFIX}age": age}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.floating]]) -> NormativeModel | None:
        """Return the model whose :meth:`arrays` were saved; None if none were."""
        if f"{PREFIX}age" not in arrays:
            return None
        youngest, oldest, mean_age, growth = (float(value) for value in arrays[f"{PREFIX}age"])
        means, ratios = (
            {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
            for prefix in (f"{PREFIX}mean.", f"{PREFIX}sd.")
        )
        return cls(means, ratios, (youngest, oldest), mean_age, growth)


class CovariateRegression:
    """Least squares of maps on age and sex in each voxel, from sums over scans; one scan at a time is in memory.

    Parameters
    ----------
    names
        The maps.
    shape
        ``(I, J, K)`` of each.
    """

    def __init__(self, names: Iterable[str], shape: tuple[int, ...]) -> None:
        self.ages: list[float] = []
        self.gram = np.zeros((N_COEFFICIENTS, N_COEFFICIENTS, *shape))  # Σ x xᵀ
        self.products = {name: np.zeros((N_COEFFICIENTS, *shape)) for name in names}  # Σ x y
        self.squares = {name: np.zeros(shape) for name in self.products}  # Σ y²

    def add(self, maps: Mapping[str, FloatArray], mask: MaskArray, covariates: FloatArray) -> None:
        """Add the maps ``(I, J, K)`` of one scan; a scan of unknown age is passed over.

        Raises
        ------
        ConfigError
            The covariates are not age and sex.
        """
        if covariates.shape != (2,):
            raise ConfigError(
                f"scoring.standardise: normative needs age and sex, found {covariates.size} covariates; choose "
                "voxelwise"
            )
        if np.isnan(covariates[0]):
            return
        x = design(covariates)
        self.ages.append(min(float(covariates[0]), OLDEST_REPORTED_AGE))
        self.gram += np.multiply.outer(np.outer(x, x), mask)
        for name, products in self.products.items():
            inside = np.where(mask, maps[name], 0).astype(np.float64)
            products += np.multiply.outer(x, inside)
            self.squares[name] += inside**2

    def fit(
        self,
        mean: Mapping[str, FloatArray],
        sd: Mapping[str, FloatArray],
        sigma_voxels: tuple[float, float, float],
    ) -> NormativeModel | None:
        """Return the regression of each map, or None if too few scans are of known age.

        Parameters
        ----------
        mean, sd
            Map name → ``(I, J, K)`` of the scans of all ages.
        sigma_voxels
            SD of the Gaussian that smooths slopes and SDs.
        """
        n = len(self.ages)
        covered = np.asarray(self.gram[0, 0] >= max(MIN_SCANS, MIN_COVERAGE * n))
        if not covered.any() or np.ptp(self.ages) == 0:
            return None
        coefficients, ratios = {}, {}
        for name in self.products:
            b, ratio = self._fit_map(name, covered, sigma_voxels)
            b[0] -= np.where(covered, mean[name], 0)
            coefficients[name] = (b / sd[name]).astype(np.float16)
            ratios[name] = ratio.astype(np.float16)
        return NormativeModel(coefficients, ratios, (min(self.ages), max(self.ages)), float(np.mean(self.ages)))

    def _fit_map(
        self, name: str, covered: MaskArray, sigma_voxels: tuple[float, float, float]
    ) -> tuple[Floats, FloatArray]:
        """Return the coefficients ``(3, I, J, K)`` of a map, and its residual SD as a share of its SD."""
        gram = np.moveaxis(self.gram[:, :, covered], -1, 0)
        products, squares = self.products[name][:, covered].T, self.squares[name][covered]
        penalty = np.diag([0.0, *_penalties(gram, products, squares)])
        b = np.zeros_like(self.products[name])
        b[:, covered] = _solve(gram + penalty, products).T
        for slope in b[1:]:
            slope[:] = smooth_inside(slope.astype(np.float32), covered, sigma_voxels)
        b[0, covered] = (products[:, 0] - (gram[:, 0, 1:] * b[1:, covered].T).sum(axis=1)) / gram[:, 0, 0]
        n_parameters = np.trace(np.linalg.solve(gram + penalty, gram), axis1=1, axis2=2)
        ratio = np.ones(covered.shape, dtype=np.float32)
        ratio[covered] = _residual_share(gram, products, squares, b[:, covered].T, n_parameters)
        smoothed = smooth_inside(ratio, covered, sigma_voxels)
        return b, np.where(covered, smoothed, np.float32(1))


def design(covariates: npt.NDArray[np.floating]) -> Floats:
    """Return ``(3,)``: 1, decades from 50 years, and sex (½ male, −½ female, 0 unknown)."""
    decades = (min(float(covariates[0]), OLDEST_REPORTED_AGE) - CENTRE_YEARS) / YEARS_PER_UNIT
    return np.array([1.0, decades, np.nan_to_num(covariates[1] - 0.5, nan=0.0)])


def fit_sd_growth(ages: Sequence[float], scores: Sequence[float]) -> float:
    """Return the logarithm of the factor by which scores grow per decade; see the module for how it is fitted.

    Parameters
    ----------
    ages, scores
        ``(n,)`` years, NaN where unknown, and scan scores, of healthy scans that the detector did not learn from.
    """
    decades, values = np.asarray(ages) / YEARS_PER_UNIT, np.asarray(scores)
    usable = np.isfinite(decades) & (values > 0)
    if usable.sum() < MIN_HELD_OUT or np.ptp(decades[usable]) == 0:
        return 0.0
    slope, _, low, high = stats.theilslopes(np.log(values[usable]), decades[usable], alpha=CONFIDENCE)
    standard_error = (high - low) / (2 * stats.norm.ppf((1 + CONFIDENCE) / 2))
    return float(slope * max(0.0, 1 - (standard_error / slope) ** 2)) if slope else 0.0


def _penalties(gram: Floats, products: Floats, squares: Floats) -> Floats:
    """Return the penalty 1/τ² of each slope, see the module.

    With ``k`` degrees of freedom, t² of a slope has the mean ``k / (k − 2)`` times τ² plus the sampling variance.
    """
    nearly_unpenalised = gram + np.diag([0.0, *[MIN_PENALTY] * (N_COEFFICIENTS - 1)])
    b = _solve(nearly_unpenalised, products)
    freedom = gram[:, 0, 0] - N_COEFFICIENTS
    variance = np.maximum(_residual_squares(gram, products, squares, b), 0) / freedom
    sampling = np.linalg.inv(nearly_unpenalised).diagonal(axis1=1, axis2=2)[:, 1:]
    varies = variance > 0
    scale = np.where(varies, (freedom - 2) / freedom / np.where(varies, variance, 1), 0)
    prior = (b[:, 1:] ** 2 * scale[:, None] - sampling).mean(axis=0)
    return np.asarray(1 / np.clip(prior, 1 / MAX_PENALTY, 1 / MIN_PENALTY))


def _residual_share(gram: Floats, products: Floats, squares: Floats, b: Floats, n_parameters: Floats) -> Floats:
    """Return the SD of the residual of each voxel, as a share of the SD of the map; 1 where the map is constant."""
    n = gram[:, 0, 0]
    residual = _residual_squares(gram, products, squares, b) / np.maximum(n - n_parameters, 1)
    total = (squares - products[:, 0] ** 2 / n) / (n - 1)
    varies = total > 0
    return np.asarray(np.sqrt(np.where(varies, np.maximum(residual, 0) / np.where(varies, total, 1), 1)))


def _residual_squares(gram: Floats, products: Floats, squares: Floats, b: Floats) -> Floats:
    """Return Σ (y − xᵀb)² of each voxel."""
    return np.asarray(squares - 2 * (b * products).sum(axis=1) + np.einsum("vp,vpq,vq->v", b, gram, b))


def _solve(matrices: Floats, right: Floats) -> Floats:
    return np.asarray(np.linalg.solve(matrices, right[..., None])[..., 0])
