"""A preprocessed volume through a detector: raw evidence maps on the template grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.models.base import Detector, Evidence


@dataclass(frozen=True, eq=False)
class RawEvidence:
    """What a detector says of one volume.

    Parameters
    ----------
    maps
        Name → float32 ``(I, J, K)``, 0 outside the mask; ``"residual"`` is signed.
    reconstruction
        float32 ``(I, J, K)`` pseudo-healthy volume.
    terms
        Name → mean over the volume's images.
    code
        float32 ``(D,)``, where similar scans are looked for; see :mod:`anomaly.scoring.scan_embedding`.
    """

    maps: Mapping[str, FloatArray]
    reconstruction: FloatArray
    terms: Mapping[str, float]
    code: FloatArray | None = None


def raw_evidence(
    detector: Detector,
    voxels: FloatArray,
    mask: MaskArray,
    about: FloatArray = UNKNOWN_COVARIATES,
    batch_size: int = 16,
    flip_average: bool = False,
) -> RawEvidence:
    """Cut a volume into images, ask the detector, and put its answers together again.

    Parameters
    ----------
    voxels, mask
        ``(I, J, K)`` on the detector's grid.
    about
        What is known of the subject ``(D,)``, as ``VolumeSource.covariates`` of the training volumes: age and sex.
    batch_size
        Images per forward pass.
    flip_average
        Average with the answer for the volume mirrored left to right (axis 0, RAS).
    """
    evidence = _one_pass(detector, voxels, mask, about, batch_size)
    if not flip_average:
        return evidence
    mirrored = _one_pass(detector, voxels[::-1].copy(), mask[::-1].copy(), about, batch_size)
    return RawEvidence(
        maps={name: _average(m, mirrored.maps[name]) for name, m in evidence.maps.items()},
        reconstruction=_average(evidence.reconstruction, mirrored.reconstruction),
        terms={name: (t + mirrored.terms[name]) / 2 for name, t in evidence.terms.items()},
    )


def _one_pass(
    detector: Detector, voxels: FloatArray, mask: MaskArray, about: FloatArray, batch_size: int
) -> RawEvidence:
    places = detector.view.locations(mask)
    answers = list(_answers(detector, voxels, mask, about, batch_size))
    shape = detector.grid.shape

    def volume(name: str | None) -> FloatArray:
        parts = (a.reconstruction if name is None else a.maps[name] for a in answers)
        pieces = (image for part in parts for image in part.float().cpu().numpy())
        whole = detector.view.assemble(shape, zip(places, pieces, strict=True))
        return np.where(mask, whole, np.float32(0))

    return RawEvidence(
        maps={name: volume(name) for name in answers[0].maps},
        reconstruction=volume(None),
        terms={name: _mean([a.terms[name] for a in answers]) for name in answers[0].terms},
    )


def batches(
    detector: Detector, voxels: FloatArray, mask: MaskArray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images ``(B, C, *S)`` that a detector sees of a volume and their masks ``(B, 1, *S)``."""
    view, device = detector.view, next(iter(detector.state_dict().values())).device
    places = view.locations(mask)
    for start in range(0, len(places), batch_size):
        some = places[start : start + batch_size]
        images = np.stack([view.cut(voxels, place) for place in some])
        masks = np.stack([view.target_slice(mask, place) for place in some])
        yield _tensor(images, device).float(), _tensor(masks, device)


def _answers(
    detector: Detector, voxels: FloatArray, mask: MaskArray, about: FloatArray, batch_size: int
) -> Iterator[Evidence]:
    with torch.inference_mode():
        for images, masks in batches(detector, voxels, mask, batch_size):
            covariates = _tensor(about, images.device)
            yield detector.evidence_given(images, masks, covariates.expand(len(images), -1))


def _average(values: FloatArray, of_mirrored: FloatArray) -> FloatArray:
    return np.asarray((values + of_mirrored[::-1]) / 2, dtype=np.float32)


def _tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat([part.float().cpu() for part in parts]).mean())
