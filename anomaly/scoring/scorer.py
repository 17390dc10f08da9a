"""Score one preprocessed scan: the steps between the evidence of a detector and the scan scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Protocol, TypeVar

import numpy as np

from anomaly.core.covariates import OLDEST_REPORTED_AGE, UNKNOWN_COVARIATES
from anomaly.core.errors import ConfigError, ScanRefusedError, unknown_name
from anomaly.core.image_views import VolumeSource
from anomaly.core.results import HealthyGroup, Neighbour
from anomaly.core.smoothing import sigma_in_voxels, smooth_inside
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.models.base import Detector
from anomaly.models.generation import Embedder
from anomaly.scoring.acquisition_shift import AcquisitionShift, acquisition_features
from anomaly.scoring.maps import RawEvidence, batches, raw_evidence
from anomaly.scoring.normative import fit_sd_growth
from anomaly.scoring.postprocess import eroded, median_inside
from anomaly.scoring.reference import (
    HealthyReference,
    fit_reference,
    mean_healthy_image,
    similarity,
    standardised,
)
from anomaly.scoring.retrieval import HealthyIndex, PlaneSlices, build_index, middle_slices
from anomaly.scoring.scan_embedding import embed_scan
from anomaly.scoring.scan_scores import (
    BACKGROUND_SCORE,
    STRUCTURE_SCORE,
    TOP_EVIDENCE,
    combined_score,
    mean_of_top,
    scan_scores,
    with_held_out_scores,
)
from anomaly.scoring.settings import EvidenceSettings, ScoringSettings
from anomaly.scoring.structure import StructureMap, structure_evidence, structure_maps

MAX_HELD_OUT_IN_MEMORY = 30  # scans whose maps are kept, to fit the background and the growth of the SD with age

InferenceT = TypeVar("InferenceT")
Inference = tuple[RawEvidence, FloatArray, MaskArray]
"""The raw evidence of a volume, its voxels and its mask ``(I, J, K)``."""


@dataclass(frozen=True, eq=False)
class ScoredVolume:
    """The result for one volume on the template grid.

    Parameters
    ----------
    evidence
        float32 ``(I, J, K)`` ≥ 0, larger = more anomalous, 0 outside ``mask``.
    signed
        float32 ``(I, J, K)``; negative = darker than expected; healthy standard deviations where standardised.
    reconstruction
        float32 ``(I, J, K)`` pseudo-healthy volume.
    mask
        Brain voxels that count for the scan score.
    scores
        Every scan score by name.
    similarity
        Median block correlation with the mean healthy image; 1 without a reference.
    acquisition_shift
        How differently from the training scans it was acquired; None without a reference, for too few training
        scans, or where the settings turn the test off.
    neighbours, neighbour_slices
        The most similar healthy training scans, and their middle slices; empty without a healthy index.
    structure
        float32 ``(I, J, K)`` ≥ 0: what shape and structure contribute to ``evidence``; None if they do not.
    compared_with
        The healthy subjects it was compared with; None where the reference does not depend on age and sex.
    """

    evidence: FloatArray
    signed: FloatArray
    reconstruction: FloatArray
    mask: MaskArray
    scores: dict[str, float]
    similarity: float = 1.0
    acquisition_shift: AcquisitionShift | None = None
    neighbours: tuple[Neighbour, ...] = ()
    neighbour_slices: PlaneSlices = field(default_factory=dict)
    structure: FloatArray | None = None
    compared_with: HealthyGroup | None = None


class ScanScorer(Protocol[InferenceT]):
    """One model, or an ensemble, that scores scans.

    ``InferenceT`` is what it computes in :meth:`infer` and needs in :meth:`postprocess`.
    """

    @property
    def grid(self) -> Geometry:
        """The template grid of the volumes it scores."""
        ...

    @property
    def uses_covariates(self) -> bool:
        """Whether the result of a scan depends on the covariates of its subject."""
        ...

    def score(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
    ) -> ScoredVolume:
        """Compute maps and scan scores of one preprocessed volume ``(I, J, K)``."""
        ...

    def infer(self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES) -> InferenceT:
        """Run the networks, or refuse the scan: the first part of :meth:`score`."""
        ...

    def postprocess(self, raw: InferenceT, voxels: FloatArray, mask: MaskArray) -> ScoredVolume:
        """Compute maps and scan scores from what :meth:`infer` returned: the second part of :meth:`score`."""
        ...


@dataclass(frozen=True, eq=False)
class Scorer:
    """A fitted detector with its scoring settings and, once learnt, the healthy reference and the healthy index."""

    detector: Detector
    settings: ScoringSettings
    reference: HealthyReference | None = None
    index: HealthyIndex | None = None

    @property
    def grid(self) -> Geometry:
        """The template grid that the detector works on."""
        return self.detector.grid

    @property
    def uses_covariates(self) -> bool:
        """Whether the result of a scan depends on the covariates of its subject."""
        return self.detector.is_conditional or (self.reference is not None and self.reference.normative is not None)

    def score(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
    ) -> ScoredVolume:
        """Compute maps and scan scores of one preprocessed volume ``(I, J, K)``.

        Parameters
        ----------
        covariates
            Covariates ``(D,)`` of the subject, as ``VolumeSource.covariates`` gives them for the training volumes:
            age and sex.

        Raises
        ------
        ScanRefusedError
            The scan does not resemble the scans that the model was trained on.
        """
        return self.postprocess(self.infer(voxels, mask, covariates), voxels, mask)

    def infer(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
    ) -> RawEvidence:
        """Compute the raw evidence: the part of :meth:`score` that runs the network.

        Raises
        ------
        ScanRefusedError
            As :meth:`score`.
        """
        found = self.checked_similarity(voxels, mask)
        raw = replace(self._raw(voxels, mask, covariates, self._mean_image), similarity=found)
        if self.index is None or raw.embedding is not None:
            return raw
        return replace(raw, embedding=self._embedding(voxels, mask))

    def postprocess(self, raw: RawEvidence, voxels: FloatArray, mask: MaskArray) -> ScoredVolume:
        """Compute maps and scan scores from the raw evidence of a volume: the rest of :meth:`score`."""
        signed = self._signed(self.smoothed_maps(raw, mask), mask, raw.covariates)
        evidence, inside = unsigned_evidence(signed, mask, self.grid, self.settings)
        found, structure = {}, self._structure(raw, inside)
        if self.settings.background_percentile:
            found[BACKGROUND_SCORE] = self._background(evidence, inside)
            share = self._share_of_usual_background(found[BACKGROUND_SCORE])
            signed, evidence = signed * share, evidence * share
        if structure is not None:
            evidence = evidence + structure
            found[STRUCTURE_SCORE] = mean_of_top(structure[inside], self.settings.top_fraction)
        scores = scan_scores(evidence, inside, raw.terms, self.settings.top_fraction) | found
        if self.reference is not None:
            scores["combined"] = combined_score(scores, self.reference)
        scored = ScoredVolume(
            evidence=evidence,
            signed=signed,
            reconstruction=raw.reconstruction,
            mask=inside,
            scores=scores,
            similarity=self.similarity(voxels, mask) if raw.similarity is None else raw.similarity,
            acquisition_shift=self.acquisition_shift(voxels, mask),
            structure=structure,
            compared_with=self.compared_with(raw.covariates),
        )
        return self._with_neighbours(scored, raw.embedding)

    def similarity(self, voxels: FloatArray, mask: MaskArray) -> float:
        """Return the median block correlation with the mean healthy image; 1 without a reference."""
        return 1.0 if self.reference is None else similarity(voxels, mask, self.reference.mean_image, self.grid)

    def acquisition_shift(self, voxels: FloatArray, mask: MaskArray) -> AcquisitionShift | None:
        """Compare the acquisition of a scan with the training scans; None where the settings turn it off."""
        if self.reference is None or not self.settings.acquisition_alpha:
            return None
        return self.reference.acquisition.compare(acquisition_features(voxels, mask))

    def compared_with(self, covariates: FloatArray) -> HealthyGroup | None:
        """Return the healthy subjects that a subject is compared with; None where all have the same reference."""
        if self.reference is None or self.reference.normative is None:
            return None
        return self.reference.normative.group(covariates)

    def learn_reference(self, healthy: VolumeSource, held_out: VolumeSource | None = None) -> Scorer:
        """Return this scorer with the statistics of healthy scans: of their voxels and of their scores.

        Parameters
        ----------
        healthy
            Scans for the voxelwise mean and SD.
        held_out
            Healthy scans that the detector did not learn from, for the statistics of scan scores.
        """
        mean_image = mean_healthy_image(healthy) if self.settings.structure_maps else None
        return self.learn_from(
            self.infer_all(healthy, mean_image), () if held_out is None else self.infer_all(held_out, mean_image)
        )

    def learn_from(self, healthy: Iterable[Inference], held_out: Iterable[Inference] = ()) -> Scorer:
        """Return what :meth:`learn_reference` returns, from raw evidence that was computed already.

        With ``settings.structure_maps`` the raw evidence must hold these maps.
        """
        smoothed = ((self.smoothed_maps(raw, mask), voxels, mask, raw.covariates) for raw, voxels, mask in healthy)
        scorer = replace(self, reference=fit_reference(smoothed, self.detector.grid, self.settings))
        others = iter(held_out)
        first = list(islice(others, MAX_HELD_OUT_IN_MEMORY))
        scorer = _with_background(_with_sd_growth(scorer, first), first)
        scores = [scorer.postprocess(raw, voxels, mask).scores for raw, voxels, mask in chain(first, others)]
        if scorer.reference is None or not scores:
            return scorer
        return replace(scorer, reference=with_held_out_scores(scorer.reference, scores))

    @property
    def _mean_image(self) -> FloatArray | None:
        return None if self.reference is None else self.reference.mean_image

    def _background(self, evidence: FloatArray, inside: MaskArray) -> float:
        return float(np.percentile(evidence[inside], self.settings.background_percentile))

    def _share_of_usual_background(self, background: float) -> float:
        """Return the background of healthy scans over that of a scan, at most 1."""
        usual = None if self.reference is None else self.reference.background
        return 1.0 if usual is None or background <= usual else usual / background

    def learn_index(self, healthy: VolumeSource, intensity_max: float) -> Scorer:
        """Return this scorer with an index of the healthy scans, in which the most similar ones are found.

        The scorer has no index if the settings turn retrieval off, or if the family has no latent code.

        Parameters
        ----------
        intensity_max
            The intensity that is white in the slices of the scans.
        """
        settings = self.settings
        if settings.retrieval == 0 or not isinstance(self.detector, Embedder):
            return self
        scans = [
            (
                self._embedding(voxels, mask),
                min(covariates[0], OLDEST_REPORTED_AGE),
                middle_slices(voxels, intensity_max),
            )
            for voxels, mask, covariates in _scans(healthy)
        ]
        codes, ages, slices = zip(*scans, strict=True)
        index = build_index(np.stack(codes), np.array(ages), slices, settings.retrieval_by)
        return replace(self, index=index)

    def nearest_similarities(self, scans: VolumeSource) -> list[float]:
        """Return the similarity of each scan to the most similar one of the index; empty without an index."""
        if self.index is None:
            return []
        return [self.index.nearest(self._embedding(v, m), 1)[0][1] for v, m, _ in _scans(scans)]

    def infer_all(self, source: VolumeSource, mean_image: FloatArray | None = None) -> Iterator[Inference]:
        """Yield the raw evidence of healthy scans, none of which is refused.

        Parameters
        ----------
        mean_image
            Mean healthy image ``(I, J, K)`` for the maps of structure; by default that of the reference.
        """
        mean_image = self._mean_image if mean_image is None else mean_image
        for voxels, mask, covariates in _scans(source):
            yield self._raw(voxels, mask, covariates, mean_image), voxels, mask

    def _raw(
        self, voxels: FloatArray, mask: MaskArray, covariates: FloatArray, mean_image: FloatArray | None
    ) -> RawEvidence:
        """Compute the maps of the model and, with a mean healthy image, those of structure."""
        settings = self.settings
        raw = raw_evidence(self.detector, voxels, mask, covariates, settings.batch_size, settings.flip_average)
        if mean_image is None or not settings.structure_maps:
            return raw
        structure = structure_maps(voxels, mask, mean_image, self.grid, settings.structure_maps)
        return replace(raw, maps={**raw.maps, **structure})

    def _embedding(self, voxels: FloatArray, mask: MaskArray) -> FloatArray:
        return embed_scan(self.detector, batches(self.detector, voxels, mask, self.settings.batch_size))

    def _with_neighbours(self, scored: ScoredVolume, embedding: FloatArray | None) -> ScoredVolume:
        if self.index is None or embedding is None:
            return scored
        found = self.index.neighbours(embedding, self.settings.retrieval)
        return replace(scored, neighbours=found, neighbour_slices=self.index.slices_of(found))

    def smoothed_maps(self, raw: RawEvidence, mask: MaskArray) -> dict[str, FloatArray]:
        """Return the signed maps of the evidence, filtered, before they are standardised."""
        unknown = sorted(self.settings.maps.keys() - raw.maps.keys())
        if unknown:
            raise ConfigError("scoring.maps: " + unknown_name("map", unknown[0], list(raw.maps)))
        sigma = sigma_in_voxels(self.settings.smoothing_mm, self.detector.grid)
        smoothed = {
            name: smooth_inside(median_inside(raw.maps[name], mask, self.settings.median_voxels), mask, sigma)
            for name in self.settings.maps
        }
        return smoothed | {name: raw.maps[name] for name in self.settings.structure_maps if name in raw.maps}

    def _structure(self, raw: RawEvidence, mask: MaskArray) -> FloatArray | None:
        """Return what shape and structure add to the evidence; None without them or without a reference."""
        weights, reference = self.settings.structure_maps, self.reference
        if not weights or reference is None:
            return None
        z: dict[StructureMap, FloatArray]
        z = {name: standardised(raw.maps, mask, reference, {name: 1.0}, raw.covariates) for name in weights}
        return structure_evidence(z, weights, mask)

    def _signed(self, maps: dict[str, FloatArray], mask: MaskArray, covariates: FloatArray) -> FloatArray:
        weights = self.settings.maps
        if self.settings.standardise == "none" or self.reference is None:
            total = sum(weights.values())
            return np.asarray(sum(w / total * maps[name] for name, w in weights.items()), dtype=np.float32)
        return standardised(maps, mask, self.reference, weights, covariates)

    def checked_similarity(self, voxels: FloatArray, mask: MaskArray) -> float:
        """Return the similarity of a scan to the training scans.

        Raises
        ------
        ScanRefusedError
            It is too low.
        """
        found = self.similarity(voxels, mask)
        if found < self.settings.min_block_correlation:
            raise ScanRefusedError(
                "unlike_training_data",
                found=f"a median block correlation of {found:.2f} with the mean healthy scan of this model",
                expected=f"at least {self.settings.min_block_correlation:.2f}",
                remedy="check modality, contrast, noise and orientation of the scan, or use another model",
            )
        return found


def unsigned_evidence(
    signed: FloatArray, mask: MaskArray, grid: Geometry, settings: EvidenceSettings
) -> tuple[FloatArray, MaskArray]:
    """Return the evidence ``(I, J, K)`` ≥ 0 of a signed map, and the voxels that count for the scan score."""
    dark = settings.dark_weight * np.maximum(-signed, 0)
    bright = settings.bright_weight * np.maximum(signed, 0)
    inside = eroded(mask, settings.erode_mm, grid.spacing)
    return np.where(inside, np.maximum(dark, bright), np.float32(0)).astype(np.float32), inside


def _with_sd_growth(scorer: Scorer, held_out: Sequence[Inference]) -> Scorer:
    """Return a scorer whose normative model also says how the SD grows with age, fitted to held-out scans."""
    reference = scorer.reference
    if reference is None or reference.normative is None:
        return scorer
    scores = [scorer.postprocess(raw, voxels, mask).scores[TOP_EVIDENCE] for raw, voxels, mask in held_out]
    growth = fit_sd_growth([float(raw.covariates[0]) for raw, _, _ in held_out], scores)
    return replace(scorer, reference=replace(reference, normative=replace(reference.normative, sd_growth=growth)))


def _with_background(scorer: Scorer, held_out: Sequence[Inference]) -> Scorer:
    """Return a scorer that knows the median background of held-out scans; unchanged without them."""
    reference = scorer.reference
    if reference is None or not held_out or not scorer.settings.background_percentile:
        return scorer
    found = [scorer.postprocess(raw, voxels, mask).scores[BACKGROUND_SCORE] for raw, voxels, mask in held_out]
    return replace(scorer, reference=replace(reference, background=float(np.median(found))))


def _scans(source: VolumeSource) -> Iterator[tuple[FloatArray, MaskArray, FloatArray]]:
    """Yield voxels, mask and covariates of every scan."""
    for index in range(len(source)):
        yield *source[index], source.covariates(index)
