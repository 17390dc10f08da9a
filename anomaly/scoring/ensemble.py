"""Several models as one: their scan scores are merged by p-values, their maps by healthy standard deviations.

The scores of different families have different scales; how rare a score is among healthy scans has one. For each of
M members the p-value of its declared score is taken against the n healthy scans that it held out from training, and
the p-values are merged into one score, larger = more anomalous:

    fisher       −2 Σ ln pₘ                 all members count; several moderate doubts add up
    bonferroni   −ln(M · min pₘ)            the most alarmed member decides
    mean         −ln(2 · (Σ pₘ) / M)        all members must be alarmed

``exp(−score)`` of the latter two, where below 1, is a p-value if the members' are, however these depend on one
another (Vovk & Wang 2020, "Combining p-values via averaging", Biometrika 107:791). Fisher's sum (1932,
"Statistical Methods for Research Workers", §21.1) would follow χ² only if they were independent, which models of
the same scans are not.

None of this carries the promise about false flags. Once the members are trained, their weights, their healthy
references and their held-out scores are fixed, so the merged score is a fixed function of the scan. It is
calibrated like the score of a single model, on healthy scans that no member has seen. Those scans and a new healthy
scan are exchangeable, hence so are their merged scores, and split conformal prediction keeps the promised rate
exactly, however the members depend on one another, and whether or not the p-values below are uniform. A bad merger
costs sensitivity, never false flags. The calibration scans themselves must not be used for the p-values: each of
them would be compared with itself, a new scan would not, and the two would no longer be exchangeable.

The p-values of one member, given its n held-out scores hᵢ:

    conformal    (1 + #{hᵢ ≥ s}) / (n + 1): exact, but never below 1 / (n + 1), about 0.08 for a dozen scans, so
                 that all scans beyond the highest held-out score look the same
    student      P(T > (ln s − m) / (d √(1 + 1/n))), T Student's with n − 1 degrees of freedom, m and d the mean and
                 SD of ln hᵢ: the tail of a new score where ln h is normal; tells apart what conformal cannot.
                 Scores that are not all positive are taken without the logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat
from scipy import special, stats

from anomaly.calibration.conformal import p_values
from anomaly.core.config import Settings
from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.errors import BundleError, ConfigError, unknown_name
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.acquisition_shift import AcquisitionShift
from anomaly.scoring.maps import RawEvidence
from anomaly.scoring.scorer import ScoredVolume, Scorer, unsigned_evidence
from anomaly.scoring.settings import EvidenceSettings

Floats = npt.NDArray[np.float64]
PValues = Literal["student", "conformal"]
How = Literal["fisher", "bonferroni", "mean"]

SCORE = "ensemble"
FEWEST_FOR_STUDENT = 3
SMALLEST_LOG = float(np.log(np.finfo(np.float64).tiny))  # a p-value is never 0


class MergeSettings(Settings):
    """How the members of an ensemble become one."""

    how: How = Field(default="fisher", description="how p-values are merged: fisher, bonferroni or mean")
    p_values: PValues = Field(
        default="student", description="a member's p-value against its held-out scores: student or conformal"
    )
    weights: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="weight of a member's map in the merged map; 1 where not named"
    )


@dataclass(frozen=True, eq=False)
class EnsembleScorer:
    """Fitted members, how they are merged, and how the merged evidence is read.

    Parameters
    ----------
    members
        Name → scorer, all on one grid, with a healthy reference that holds held-out scores.

    Raises
    ------
    BundleError
        A member cannot be merged: the message says what it lacks.
    ConfigError
        A weight names no member.
    """

    members: Mapping[str, Scorer]
    merge: MergeSettings
    settings: EvidenceSettings

    def __post_init__(self) -> None:
        for name, member in self.members.items():
            _refuse_what_cannot_be_merged(name, member, self.merge.p_values)
        unknown = sorted(self.merge.weights.keys() - self.members.keys())
        if unknown:
            raise ConfigError("weights: " + unknown_name("member", unknown[0], list(self.members)))

    @property
    def grid(self) -> Geometry:
        """The template grid all members work on."""
        return next(iter(self.members.values())).grid

    def score(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
    ) -> ScoredVolume:
        """Return maps and scan scores of one preprocessed volume, as :meth:`Scorer.score`."""
        return self.postprocess(self.infer(voxels, mask, covariates), voxels, mask)

    def infer(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
    ) -> tuple[RawEvidence, ...]:
        """Return what each member says of a volume, one after the other.

        Raises
        ------
        ScanRefusedError
            Any member refuses the scan.
        """
        return tuple(member.infer(voxels, mask, covariates) for member in self.members.values())

    def postprocess(self, raw: tuple[RawEvidence, ...], voxels: FloatArray, mask: MaskArray) -> ScoredVolume:
        """Return the merged maps, each member's declared score under its name, and the merged score.

        The reconstruction is that of the first member; what is said of the scan's likeness to the training scans
        is the worst that any member says.
        """
        said = [m.postprocess(r, voxels, mask) for m, r in zip(self.members.values(), raw, strict=True)]
        signed = np.asarray(
            sum(w * found.signed for w, found in zip(self._weights, said, strict=True)), dtype=np.float32
        )
        evidence, inside = unsigned_evidence(signed, mask, self.grid, self.settings)
        return ScoredVolume(
            evidence=evidence,
            signed=signed,
            reconstruction=said[0].reconstruction,
            mask=inside,
            scores=self._scores(said),
            similarity=min(found.similarity for found in said),
            acquisition_shift=_worst([found.acquisition_shift for found in said]),
        )

    def _scores(self, said: Sequence[ScoredVolume]) -> dict[str, float]:
        scores, logs = {}, []
        for (name, member), found in zip(self.members.items(), said, strict=True):
            declared = member.settings.scan_score
            scores[name] = found.scores[declared]
            logs.append(log_p_values(scores[name], held_out_scores(member), self.merge.p_values))
        return scores | {SCORE: float(merged(np.array(logs), self.merge.how))}

    @cached_property
    def _weights(self) -> list[float]:
        given = [self.merge.weights.get(name, 1.0) for name in self.members]
        return [weight / sum(given) for weight in given]


def held_out_scores(member: Scorer) -> Sequence[float]:
    """Return a model's declared score ``(n,)`` for the healthy scans it held out; empty where it keeps none."""
    return () if member.reference is None else member.reference.held_out_scores.get(member.settings.scan_score, ())


def log_p_values(scores: npt.ArrayLike, healthy: npt.ArrayLike, kind: PValues) -> Floats:
    """Return the logarithm of the p-value of each score ``(...)`` against ``(n,)`` healthy scores."""
    if kind == "conformal":
        return np.asarray(np.log(p_values(scores, healthy)))
    values, reference = np.asarray(scores, dtype=np.float64), np.asarray(healthy, dtype=np.float64)
    if reference.min() > 0:
        reference = np.log(reference)
        with np.errstate(divide="ignore"):
            values = np.log(np.maximum(values, 0))  # no score at all is no evidence: p = 1
    n = reference.size
    t = (values - reference.mean()) / (reference.std(ddof=1) * np.sqrt(1 + 1 / n))
    return np.asarray(np.maximum(stats.t.logsf(t, df=n - 1), SMALLEST_LOG))


def merged(log_p: Floats, how: How) -> Floats:
    """Return the merged score ``(...)`` of the log p-values ``(M, ...)`` of M members; see the module."""
    if how == "fisher":
        return np.asarray(-2 * log_p.sum(axis=0))
    m = len(log_p)
    if how == "bonferroni":
        return np.asarray(-(np.log(m) + log_p.min(axis=0)))
    return np.asarray(-(np.log(2 / m) + special.logsumexp(log_p, axis=0)))


def _refuse_what_cannot_be_merged(name: str, member: Scorer, kind: PValues) -> None:
    scores = held_out_scores(member)
    if not scores:
        raise BundleError(
            f"member {name!r} keeps no held-out values of its score {member.settings.scan_score!r}, by which an "
            "ensemble measures it (models of earlier versions do not); train it again"
        )
    if member.settings.standardise == "none":
        raise BundleError(
            f"the maps of member {name!r} are in units of its own (scoring.standardise: none), expected healthy "
            "standard deviations; train it with scoring.standardise: voxelwise"
        )
    if kind == "student" and (len(scores) < FEWEST_FOR_STUDENT or np.ptp(scores) == 0):
        raise BundleError(
            f"member {name!r} keeps {len(scores)} held-out scores, {len(set(scores))} of them different; "
            f"p_values: student expects at least {FEWEST_FOR_STUDENT} that differ; use conformal, or train the "
            "member with a larger validation_fraction"
        )


def _worst(found: Sequence[AcquisitionShift | None]) -> AcquisitionShift | None:
    known = [acquisition_shift for acquisition_shift in found if acquisition_shift is not None]
    return min(known, key=lambda acquisition_shift: acquisition_shift.p_value, default=None)
