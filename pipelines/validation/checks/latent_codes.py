"""Exam of models that rebuild pictures from a code: how well, and what the code knows.

Beside principal components of as many numbers: a network that is worth its weights rebuilds better. What the code
knows: a linear classifier reads the first label from it (linear probe), and among training pictures those whose
bits are most alike (semantic hashing) should show the same. Half-hidden and noisy pictures are rebuilt, and
compared with what filling in the mean picture gives.

Source: Salakhutdinov & Hinton 2009, "Semantic hashing"; Alain & Bengio 2017, "Understanding intermediate layers
using linear classifier probes".
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.models.generation import Decoder, Embedder, Reconstructor
from anomaly.scoring.retrieval import build_index
from pipelines.validation.labelled_dataset import Labels, batches
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import code_map, sheet

SHOWN = 16
NOISE_SD = 0.3
HIDDEN = 0.5  # of the height of a picture, its lower part
FILLINGS = 10  # times that what is hidden is rebuilt from what was filled in before
PRECISION_AT = 10
QUERIES = 1000
GRID, REACH = 20, 2.0  # of a drawn plane of codes: points per axis, and its half width in standard deviations


def codes(candidate: Candidate) -> Findings:
    """Measure how a model rebuilds pictures and what its codes know; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family does not rebuild, or has no code.
    """
    detector, world, probed = candidate.detector, candidate.world, candidate.exams.probed
    if not (isinstance(detector, Reconstructor) and isinstance(detector, Embedder)):
        raise ConfigError(f"the family {detector.family!r} has no code; leave out the exam codes")
    known, test = candidate.seen.select(slice(probed)), candidate.not_learnt
    learnt, new = known.seen(), test.seen()
    rebuilt = reconstructed(detector, new)
    known_codes, new_codes = embedded(detector, learnt), embedded(detector, new)
    size = known_codes.shape[1]
    error, of_pca = _mse(new, rebuilt), _error_of_pca(candidate.seen.seen(), new, size)
    measures = {
        "code_size": float(size),
        "mse": error,
        "pca_mse": of_pca,
        "better_than_pca": of_pca / error,
        "linear_probe": _probe(known_codes, known.labels[:, 0], new_codes, test.labels[:, 0]),
        "precision_at_10": _precision(
            known_codes, known.labels[:, 0], new_codes[:QUERIES], test.labels[:QUERIES, 0]
        ),
    }
    pictures = {"Test pictures, and as rebuilt": sheet(world.shown(_paired(new, rebuilt)), SHOWN)}
    for name, title, (damaged, filled, restored) in _repairs(candidate, detector, new[:QUERIES]):
        before, after = psnr(new[:QUERIES], filled), psnr(new[:QUERIES], restored)
        measures |= {f"{name}_psnr": after, f"{name}_psnr_gain": after - before}
        rows = np.concatenate([images[:SHOWN] for images in (damaged, filled, restored, new)])
        pictures[title] = sheet(world.shown(rows), SHOWN)
    if size == 2:
        kinds = next(iter(world.features.values()))
        pictures["Codes of the test pictures"] = code_map(new_codes, test.labels[:, 0], kinds)
        if isinstance(detector, Decoder):
            pictures["The plane of codes, decoded"] = sheet(world.shown(_plane(detector, new_codes)), GRID)
    return Findings(measures, pictures)


def reconstructed(model: Reconstructor, pixels: FloatArray) -> FloatArray:
    """Return pictures ``(N, H, W)`` as the model rebuilds them."""
    with torch.inference_mode():
        parts = [model.reconstruct(some, _all(some)).squeeze(1) for some in batches(pixels)]
    return np.asarray(torch.cat(parts).float().numpy(), dtype=np.float32)


def embedded(model: Embedder, pixels: FloatArray) -> FloatArray:
    """Return the codes ``(N, D)`` of pictures ``(N, H, W)``."""
    with torch.inference_mode():
        return np.asarray(torch.cat([model.embed(some, _all(some)) for some in batches(pixels)]).float().numpy())


def filled_in(model: Reconstructor, pixels: FloatArray, hidden: MaskArray, mean: FloatArray) -> FloatArray:
    """Return pictures ``(N, H, W)`` whose hidden pixels ``(H, W)`` are what the model makes of the others.

    They begin as the mean picture and are rebuilt again and again (pseudo-Gibbs; Rezende et al. 2014, appendix F).
    """
    restored = np.where(hidden, mean, pixels)
    for _ in range(FILLINGS):
        restored = np.where(hidden, reconstructed(model, restored), pixels)
    return np.asarray(restored, dtype=np.float32)


def psnr(truth: FloatArray, found: FloatArray) -> float:
    """Return the peak signal-to-noise ratio of pictures of peak 1, dB, of their mean squared error."""
    return float(-10 * np.log10(max(_mse(truth, found), 1e-12)))


def _repairs(
    candidate: Candidate, model: Reconstructor, pixels: FloatArray
) -> list[tuple[str, str, tuple[FloatArray, FloatArray, FloatArray]]]:
    """Return name, title and pictures, damaged, as a baseline restores them, and as the model does."""
    mean = candidate.seen.seen().mean(axis=0)
    hidden = np.zeros(mean.shape, dtype=bool)
    hidden[round(HIDDEN * len(hidden)) :] = True
    noise = np.random.default_rng(candidate.exams.seed).standard_normal(pixels.shape) * NOISE_SD
    noisy = (pixels + noise).clip(0, 1).astype(np.float32)
    half, filled = (np.where(hidden, value, pixels).astype(np.float32) for value in (0.5, mean))
    rows = "damaged, baseline, restored, truth"
    return [
        ("inpainting", f"Half hidden: {rows}", (half, filled, filled_in(model, pixels, hidden, mean))),
        ("denoising", f"Noisy: {rows}", (noisy, noisy, reconstructed(model, noisy))),
    ]


def _error_of_pca(known: FloatArray, new: FloatArray, size: int) -> float:
    flat = new.reshape(len(new), -1)
    pca = PCA(min(size, flat.shape[1]), svd_solver="covariance_eigh").fit(known.reshape(len(known), -1))
    return _mse(flat, pca.inverse_transform(pca.transform(flat)))


def _probe(known: FloatArray, labels: Labels, new: FloatArray, truth: Labels) -> float:
    scaler = StandardScaler().fit(known)
    probe = LogisticRegression(max_iter=500).fit(scaler.transform(known), labels)
    return float(probe.score(scaler.transform(new), truth))


def _precision(known: FloatArray, labels: Labels, new: FloatArray, truth: Labels) -> float:
    """Return the mean share of the ten pictures with the most equal bits that show the same."""
    index = build_index(known, np.full(len(known), np.nan), (), "hash")
    nearest = [[found for found, _ in index.nearest(code, PRECISION_AT)] for code in new]
    return float((labels[nearest] == truth[:, None]).mean())


def _plane(model: Decoder, found: FloatArray) -> FloatArray:
    centre, sd = found.mean(axis=0), found.std(axis=0)
    across, up = np.meshgrid(np.linspace(-REACH, REACH, GRID), np.linspace(REACH, -REACH, GRID))
    points = centre + sd * np.stack([across.ravel(), up.ravel()], axis=1)
    with torch.inference_mode():
        drawn = model.decode(torch.from_numpy(points.astype(np.float32)))
    return np.asarray(drawn[:, 0].float().numpy())


def _paired(pictures: FloatArray, rebuilt: FloatArray) -> FloatArray:
    return np.concatenate([pictures[:SHOWN], rebuilt[:SHOWN]])


def _mse(truth: FloatArray, found: FloatArray) -> float:
    return float(((truth - found) ** 2).mean())


def _all(images: Tensor) -> Tensor:
    return torch.ones_like(images, dtype=torch.bool)
