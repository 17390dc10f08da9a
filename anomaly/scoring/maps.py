"""Run a detector on a preprocessed volume and assemble its evidence maps on the template grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.models.base import Detector, Evidence
from anomaly.scoring.scan_embedding import scan_embedding_of


@dataclass(frozen=True, eq=False)
class RawEvidence:
    """The evidence of a detector for one volume, before any filter or standardisation.

    Parameters
    ----------
    maps
        Name → float32 ``(I, J, K)``, 0 outside the mask; ``"residual"`` is signed.
    reconstruction
        float32 ``(I, J, K)`` pseudo-healthy volume.
    terms
        Name → mean over the images of the volume.
    embedding
        float32 ``(D,)`` latent code of the scan, see :mod:`anomaly.scoring.scan_embedding`; None where the family
        has none, or gives none in the same forward pass.
    similarity
        Median block correlation of the volume with the mean healthy image; None where it was not computed.
    covariates
        ``(D,)`` covariates of the subject.
    """

    maps: Mapping[str, FloatArray]
    reconstruction: FloatArray
    terms: Mapping[str, float]
    embedding: FloatArray | None = None
    similarity: float | None = None
    covariates: FloatArray = field(default_factory=UNKNOWN_COVARIATES.copy)


def raw_evidence(
    detector: Detector,
    voxels: FloatArray,
    mask: MaskArray,
    covariates: FloatArray = UNKNOWN_COVARIATES,
    batch_size: int = 16,
    flip_average: bool = False,
) -> RawEvidence:
    """Cut a volume into images, compute their evidence, and assemble the maps.

    Parameters
    ----------
    voxels, mask
        ``(I, J, K)`` on the grid of the detector.
    covariates
        Covariates ``(D,)`` of the subject, as ``VolumeSource.covariates`` gives them for the training volumes: age
        and sex.
    batch_size
        Images per forward pass.
    flip_average
        Average the evidence with that of the volume mirrored left to right (axis 0 in RAS). The embedding is that
        of the volume as it is.
    """
    evidence = _one_pass(detector, voxels, mask, covariates, batch_size)
    if not flip_average:
        return evidence
    mirrored = _one_pass(detector, voxels[::-1].copy(), mask[::-1].copy(), covariates, batch_size)
    return RawEvidence(
        maps={name: _average(values, mirrored.maps[name]) for name, values in evidence.maps.items()},
        reconstruction=_average(evidence.reconstruction, mirrored.reconstruction),
        terms={name: (value + mirrored.terms[name]) / 2 for name, value in evidence.terms.items()},
        embedding=evidence.embedding,
        covariates=covariates,
    )


def batches(
    detector: Detector, voxels: FloatArray, mask: MaskArray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images ``(B, C, *S)`` that a detector sees of a volume, and their masks ``(B, 1, *S)``."""
    view, device = detector.view, next(iter(detector.state_dict().values())).device
    locations = view.locations(mask)
    for start in range(0, len(locations), batch_size):
        of_batch = locations[start : start + batch_size]
        images = np.stack([view.cut(voxels, location) for location in of_batch])
        masks = np.stack([view.target_slice(mask, location) for location in of_batch])
        yield _tensor(images, device).float(), _tensor(masks, device)


def _one_pass(
    detector: Detector, voxels: FloatArray, mask: MaskArray, covariates: FloatArray, batch_size: int
) -> RawEvidence:
    locations = detector.view.locations(mask)
    evidence = list(_evidence_of_batches(detector, voxels, mask, covariates, batch_size))

    def assemble(parts: Sequence[Tensor]) -> FloatArray:
        images = (image for part in parts for image in part.float().cpu().numpy())
        volume = detector.view.assemble(detector.grid.shape, zip(locations, images, strict=True))
        return np.where(mask, volume, np.float32(0))

    return RawEvidence(
        maps={name: assemble([batch.maps[name] for batch in evidence]) for name in evidence[0].maps},
        reconstruction=assemble([batch.reconstruction for batch in evidence]),
        terms={name: _mean([batch.terms[name] for batch in evidence]) for name in evidence[0].terms},
        embedding=scan_embedding_of([batch.embedding for batch in evidence], detector.view),
        covariates=covariates,
    )


def _evidence_of_batches(
    detector: Detector, voxels: FloatArray, mask: MaskArray, covariates: FloatArray, batch_size: int
) -> Iterator[Evidence]:
    with torch.inference_mode():
        for images, masks in batches(detector, voxels, mask, batch_size):
            of_subject = _tensor(covariates, images.device).expand(len(images), -1)
            yield detector.evidence(images, masks, of_subject)


def _average(values: FloatArray, of_mirrored: FloatArray) -> FloatArray:
    return np.asarray((values + of_mirrored[::-1]) / 2, dtype=np.float32)


def _tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat([part.float().cpu() for part in parts]).mean())
