"""Score with several models: merge their scan scores by p-values, and their maps by healthy standard deviations.

The scores of different families have different scales, but how rare a score is among healthy scans can be
compared. For each of M members the p-value of its declared score is computed against the n healthy scans that it
held out from training. The p-values are merged into one score, larger = more anomalous:

    fisher       −2 Σ ln pₘ                 all members count; several moderate p-values add up
    bonferroni   −ln(M · min pₘ)            the smallest p-value decides
    mean         −ln(2 · (Σ pₘ) / M)        all p-values must be small

``exp(−score)`` of the latter two, where below 1, is a p-value if those of the members are, however they depend on
one another (Vovk & Wang 2020, "Combining p-values via averaging", Biometrika 107:791). Fisher's sum (1932,
"Statistical Methods for Research Workers", §21.1) follows χ² only for independent p-values, and those of models
that score the same scan are not.

The false-positive rate does not rest on any of this. Once the members are trained, their weights, their healthy
references and their held-out scores are fixed, so the merged score is a fixed function of the scan. It is
calibrated like the score of a single model, on healthy scans that no member has seen. Those scans and a new
healthy scan are exchangeable, hence so are their merged scores, and split conformal prediction controls the
false-positive rate exactly, however the members depend on one another, and whether or not their p-values are
uniform. A poor way of merging costs sensitivity and does not raise the false-positive rate. The calibration scans
themselves must not be used for the p-values of the members: each of them would be compared with itself, a new scan
would not, and the two would no longer be exchangeable.

The p-values of one member, given its n held-out scores hᵢ:

    conformal    (1 + #{hᵢ ≥ s}) / (n + 1): exact, but never below 1 / (n + 1), about 0.08 for a dozen scans, so
                 that all scans beyond the highest held-out score have the same p-value
    student      P(T > (ln s − m) / (d √(1 + 1/n))), T Student's with n − 1 degrees of freedom, m and d the mean and
                 SD of ln hᵢ: the tail probability of a new score if ln h is normal; it also distinguishes scores
                 beyond the highest held-out one. Scores that are not all positive are used without the logarithm.
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
from anomaly.core.results import HealthyGroup
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.acquisition_shift import AcquisitionShift
from anomaly.scoring.maps import RawEvidence
from anomaly.scoring.scorer import ScoredVolume, Scorer, unsigned_evidence
from anomaly.scoring.settings import EvidenceSettings

Floats = npt.NDArray[np.float64]
PValueKind = Literal["student", "conformal"]
MergeMethod = Literal["fisher", "bonferroni", "mean"]

ENSEMBLE_SCORE = "ensemble"
MIN_SCORES_FOR_STUDENT = 3
MIN_LOG_P = float(np.log(np.finfo(np.float64).tiny))  # a p-value is never 0


class MergeSettings(Settings):
    """How the members of an ensemble are merged."""

    how: MergeMethod = Field(default="fisher", description="how p-values are merged: fisher, bonferroni or mean")
    p_values: PValueKind = Field(
        default="student", description="p-value of a member against its held-out scores: student or conformal"
    )
    weights: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="weight of a member's map in the merged map; 1 for members not named"
    )


@dataclass(frozen=True, eq=False)
class EnsembleScorer:
    """Fitted members, how they are merged, and how the merged evidence is scored.

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
            _check_member(name, member, self.merge.p_values)
        unknown = sorted(self.merge.weights.keys() - self.members.keys())
        if unknown:
            raise ConfigError("weights: " + unknown_name("member", unknown[0], list(self.members)))

    @property
    def grid(self) -> Geometry:
        """The template grid all members work on."""
        return next(iter(self.members.values())).grid

    @property
    def uses_covariates(self) -> bool:
        """Whether the result of a scan depends on the covariates of its subject, for any member."""
        return any(member.uses_covariates for member in self.members.values())

    def score(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
    ) -> ScoredVolume:
        """Compute maps and scan scores of one preprocessed volume, as :meth:`Scorer.score`."""
        return self.postprocess(self.infer(voxels, mask, covariates), voxels, mask)

    def infer(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
    ) -> tuple[RawEvidence, ...]:
        """Compute the raw evidence of every member, one after the other.

        Raises
        ------
        ScanRefusedError
            Any member refuses the scan.
        """
        return tuple(member.infer(voxels, mask, covariates) for member in self.members.values())

    def postprocess(self, raw: tuple[RawEvidence, ...], voxels: FloatArray, mask: MaskArray) -> ScoredVolume:
        """Merge the maps and the scores; the declared score of each member is kept under its name.

        The reconstruction is that of the first member. The similarity to the training scans is the lowest, and the
        acquisition shift the least probable, of all members. The healthy subjects that the scan was compared with
        are those of the member whose ages are the farthest from the subject's.
        """
        members = [m.postprocess(r, voxels, mask) for m, r in zip(self.members.values(), raw, strict=True)]
        signed = np.asarray(
            sum(w * scored.signed for w, scored in zip(self._weights, members, strict=True)), dtype=np.float32
        )
        evidence, inside = unsigned_evidence(signed, mask, self.grid, self.settings)
        structure = self._structure(members)
        return ScoredVolume(
            evidence=evidence if structure is None else evidence + structure,
            signed=signed,
            reconstruction=members[0].reconstruction,
            mask=inside,
            scores=self._scores(members),
            similarity=min(scored.similarity for scored in members),
            acquisition_shift=_least_probable([scored.acquisition_shift for scored in members]),
            structure=structure,
            compared_with=_farthest([scored.compared_with for scored in members]),
        )

    def _structure(self, members: Sequence[ScoredVolume]) -> FloatArray | None:
        """Return the weighted mean of what shape and structure add to the evidence of the members."""
        found = [(w, m.structure) for w, m in zip(self._weights, members, strict=True) if m.structure is not None]
        return np.asarray(sum(w * added for w, added in found), dtype=np.float32) if found else None

    def _scores(self, scored_by_members: Sequence[ScoredVolume]) -> dict[str, float]:
        scores, log_p = {}, []
        for (name, member), scored in zip(self.members.items(), scored_by_members, strict=True):
            scores[name] = scored.scores[member.settings.scan_score]
            log_p.append(log_p_values(scores[name], held_out_scores(member), self.merge.p_values))
        return scores | {ENSEMBLE_SCORE: float(merge_log_p_values(np.array(log_p), self.merge.how))}

    @cached_property
    def _weights(self) -> list[float]:
        weights = [self.merge.weights.get(name, 1.0) for name in self.members]
        return [weight / sum(weights) for weight in weights]


def held_out_scores(member: Scorer) -> Sequence[float]:
    """Return a model's declared score ``(n,)`` for the healthy scans it held out; empty where it has none."""
    return () if member.reference is None else member.reference.held_out_scores.get(member.settings.scan_score, ())


def log_p_values(scores: npt.ArrayLike, healthy: npt.ArrayLike, kind: PValueKind) -> Floats:
    """Return the logarithm of the p-value of each score ``(...)`` against ``(n,)`` healthy scores."""
    if kind == "conformal":
        return np.asarray(np.log(p_values(scores, healthy)))
    values, reference = np.asarray(scores, dtype=np.float64), np.asarray(healthy, dtype=np.float64)
    if reference.min() > 0:
        reference = np.log(reference)
        with np.errstate(divide="ignore"):
            values = np.log(np.maximum(values, 0))  # a score of 0 is no evidence: p = 1
    n = reference.size
    t = (values - reference.mean()) / (reference.std(ddof=1) * np.sqrt(1 + 1 / n))
    return np.asarray(np.maximum(stats.t.logsf(t, df=n - 1), MIN_LOG_P))


def merge_log_p_values(log_p: Floats, how: MergeMethod) -> Floats:
    """Return the merged score ``(...)`` of the log p-values ``(M, ...)`` of M members; see the module."""
    if how == "fisher":
        return np.asarray(-2 * log_p.sum(axis=0))
    m = len(log_p)
    if how == "bonferroni":
        return np.asarray(-(np.log(m) + log_p.min(axis=0)))
    return np.asarray(-(np.log(2 / m) + special.logsumexp(log_p, axis=0)))


def _check_member(name: str, member: Scorer, kind: PValueKind) -> None:
    """Raise BundleError for a model that cannot be a member."""
    scores = held_out_scores(member)
    if not scores:
        raise BundleError(
            f"member {name!r} has no held-out values of its score {member.settings.scan_score!r}, which an "
            "ensemble needs for p-values (models of earlier versions have none); train it again"
        )
    if member.settings.standardise == "none":
        raise BundleError(
            f"the maps of member {name!r} are in units of its own (scoring.standardise: none), expected healthy "
            "standard deviations; train it with scoring.standardise: voxelwise or normative"
        )
    if kind == "student" and (len(scores) < MIN_SCORES_FOR_STUDENT or np.ptp(scores) == 0):
        raise BundleError(
            f"member {name!r} has {len(scores)} held-out scores, {len(set(scores))} of them different; "
            f"p_values: student expects at least {MIN_SCORES_FOR_STUDENT} that differ; use conformal, or train the "
            "member with a larger validation_fraction"
        )


def _least_probable(shifts: Sequence[AcquisitionShift | None]) -> AcquisitionShift | None:
    known = [shift for shift in shifts if shift is not None]
    return min(known, key=lambda shift: shift.p_value, default=None)


def _farthest(groups: Sequence[HealthyGroup | None]) -> HealthyGroup | None:
    known = [group for group in groups if group is not None]
    return max(known, key=lambda group: group.years_outside, default=None)
