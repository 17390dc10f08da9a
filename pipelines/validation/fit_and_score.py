"""Train a detector on images and score other images: the one path that all checks of detectors take.

    train_detector(entry, train images)            a trained detector; an interrupted training continues
    fit_scorer(detector, reference, held out)      mean and SD of its maps, and normal scores
    score_images(scorer, images)                   maps and scores of each image, as of a scan

Scans are scored one by one, because a scan has many slices (:func:`anomaly.scoring.maps.raw_evidence`). An image
has one slice, so that many images share a forward pass here (:func:`image_evidence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from anomaly.core.errors import ConfigError, InputError
from anomaly.core.image_views import Array
from anomaly.core.progress import Progress
from anomaly.core.volume import FloatArray
from anomaly.models.base import Detector
from anomaly.models.registry import create
from anomaly.scoring.maps import RawEvidence
from anomaly.scoring.scorer import Inference, ScoredVolume, Scorer
from anomaly.scoring.settings import ScoringSettings
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.labelled_dataset import BATCH_SIZE, LabelledImages, as_covariates
from pipelines.validation.settings import FamilyEntry

Scores = dict[str, npt.NDArray[np.float64]]


def train_detector(
    entry: FamilyEntry,
    images: LabelledImages,
    folder: Path,
    device: str = "auto",
    seed: int | None = None,
    progress: Progress | None = None,
) -> Detector:
    """Train a model family on images.

    Parameters
    ----------
    folder
        Keeps the training. One that was interrupted continues; one that is finished is loaded.
    seed
        Seed of the training; None = the one in the entry's training settings.
    """
    detector = create(entry.model_settings(), images.grid)
    fit(detector, images, (), FitRun(folder, entry.training, seed=seed, device=device, progress=progress))
    return detector


def fit_scorer(
    detector: Detector, settings: ScoringSettings, reference: LabelledImages, held_out: LabelledImages
) -> Scorer:
    """Return a scorer with mean and SD of the maps of ``reference``, and ``held_out`` scores as normal scores."""
    return Scorer(detector, settings).learn_from(
        image_evidence(detector, reference), image_evidence(detector, held_out)
    )


def score_images(scorer: Scorer, images: LabelledImages) -> Iterator[ScoredVolume]:
    """Yield the maps and scores of each image, as of a scan."""
    for raw, voxels, mask in image_evidence(scorer.detector, images):
        yield scorer.postprocess(raw, voxels, mask)


def scores_by_name(results: Iterable[ScoredVolume], declared: str) -> Scores:
    """Return score name → values ``(N,)`` of scored images.

    Raises
    ------
    ConfigError
        If there is no score with the name ``declared``, the one that counts.
    InputError
        If its values are not finite.
    """
    rows = [result.scores for result in results]
    if declared not in rows[0]:
        raise ConfigError(f"scan_score {declared!r} is none of {', '.join(sorted(rows[0]))}")
    scores = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
    if not np.isfinite(scores[declared]).all():
        raise InputError(f"score {declared!r} is not finite for every image; check the training of the model")
    return scores


def image_evidence(detector: Detector, images: LabelledImages, batch_size: int = BATCH_SIZE) -> Iterator[Inference]:
    """Yield the evidence of each image with its volume and mask; ``batch_size`` images share a forward pass."""
    for start in range(0, len(images.pixels), batch_size):
        volumes = [images[index] for index in range(start, min(start + batch_size, len(images.pixels)))]
        location = detector.view.locations(volumes[0][1])[0]
        inputs = _stacked([detector.view.cut(voxels, location) for voxels, _ in volumes])
        masks = _stacked([detector.view.target_slice(mask, location) for _, mask in volumes])
        covariates = torch.from_numpy(as_covariates(images.labels[start : start + batch_size]))
        with torch.inference_mode():
            evidence = detector.evidence(inputs, masks, covariates)
        shape = volumes[0][0].shape
        maps = {name: _as_volumes(values, len(volumes), shape) for name, values in evidence.maps.items()}
        expected = _as_volumes(evidence.reconstruction, len(volumes), shape)
        for row, (voxels, mask) in enumerate(volumes):
            terms = {name: float(values[row]) for name, values in evidence.terms.items()}
            yield RawEvidence({name: some[row] for name, some in maps.items()}, expected[row], terms), voxels, mask


def _stacked(images: Sequence[Array]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def _as_volumes(images: torch.Tensor, n: int, shape: tuple[int, ...]) -> FloatArray:
    return images.float().numpy().reshape(n, *shape)
