"""Check of models with a latent code: how well they reconstruct, and what the code represents.

Reconstruction is compared with principal components of the same number: a network must do better to be of use. Two
measures say what the code represents. A linear classifier predicts the first label from it (linear probe), and the
training images whose binary codes are nearest (semantic hashing) should have the same label. Half-hidden and noisy
images are restored and compared with baselines: the mean image in the hidden half, and the noisy image itself.

Source: Salakhutdinov & Hinton 2009, "Semantic hashing"; Alain & Bengio 2017, "Understanding intermediate layers
using linear classifier probes".
"""

from __future__ import annotations

from typing import NamedTuple

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
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import code_map, image_grid

N_SHOWN = 16  # images in the report
NOISE_SD = 0.3
HIDDEN_FRACTION = 0.5  # of the height of an image, its lower part
INPAINTING_ITERATIONS = 10
N_NEIGHBOURS = 10  # of which the share with the same label is measured
N_QUERIES = 1000  # test images used for retrieval and restoration
PLANE_POINTS, PLANE_SD = 20, 2.0  # decoded plane of 2D codes: points per axis, and half width in SD


class Restoration(NamedTuple):
    """Images ``(N, H, W)`` damaged, restored by a baseline, and restored by the model."""

    name: str
    title: str
    damaged: FloatArray
    baseline: FloatArray
    restored: FloatArray


def check_latent_codes(model: ModelUnderTest) -> CheckResult:
    """Measure reconstructions and codes; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family does not reconstruct, or has no code.
    """
    detector, dataset = model.detector, model.dataset
    if not (isinstance(detector, Reconstructor) and isinstance(detector, Embedder)):
        raise ConfigError(f"the family {detector.family!r} has no code; remove the check latent_codes")
    train, test = model.train_images.select(slice(model.settings.code_images)), model.novel_test_images
    learnt, new = train.model_inputs(), test.model_inputs()
    reconstructed = reconstruct(detector, new)
    train_codes, test_codes = embed(detector, learnt), embed(detector, new)
    size = train_codes.shape[1]
    mse, pca_mse = _mse(new, reconstructed), _pca_mse(model.train_images.model_inputs(), new, size)
    measures = {
        "code_size": float(size),
        "mse": mse,
        "pca_mse": pca_mse,
        "pca_error_ratio": pca_mse / mse,
        "linear_probe": _probe_accuracy(train_codes, train.labels[:, 0], test_codes, test.labels[:, 0]),
        "precision_at_10": _precision(
            train_codes, train.labels[:, 0], test_codes[:N_QUERIES], test.labels[:N_QUERIES, 0]
        ),
    }
    pairs = np.concatenate([new[:N_SHOWN], reconstructed[:N_SHOWN]])
    images = {"Test images and their reconstructions": image_grid(dataset.to_display(pairs), N_SHOWN)}
    for restoration in _restorations(model, detector, new[:N_QUERIES]):
        name, title, damaged, baseline, restored = restoration
        before, after = psnr(new[:N_QUERIES], baseline), psnr(new[:N_QUERIES], restored)
        measures |= {f"{name}_psnr": after, f"{name}_psnr_gain": after - before}
        rows = np.concatenate([some[:N_SHOWN] for some in (damaged, baseline, restored, new)])
        images[title] = image_grid(dataset.to_display(rows), N_SHOWN)
    if size == 2:
        classes = next(iter(dataset.attributes.values()))
        images["Codes of the test images"] = code_map(test_codes, test.labels[:, 0], classes)
        if isinstance(detector, Decoder):
            plane = dataset.to_display(_decoded_plane(detector, test_codes))
            images["The plane of codes, decoded"] = image_grid(plane, PLANE_POINTS)
    return CheckResult(measures, images)


def reconstruct(model: Reconstructor, pixels: FloatArray) -> FloatArray:
    """Return the model's reconstructions of images ``(N, H, W)``."""
    with torch.inference_mode():
        parts = [model.reconstruct(some, _full_mask(some)).squeeze(1) for some in batches(pixels)]
    return np.asarray(torch.cat(parts).float().numpy(), dtype=np.float32)


def embed(model: Embedder, pixels: FloatArray) -> FloatArray:
    """Return the codes ``(N, D)`` of images ``(N, H, W)``."""
    with torch.inference_mode():
        codes = torch.cat([model.embed(some, _full_mask(some)) for some in batches(pixels)])
    return np.asarray(codes.float().numpy())


def inpaint(model: Reconstructor, pixels: FloatArray, hidden: MaskArray, mean: FloatArray) -> FloatArray:
    """Return images ``(N, H, W)`` whose hidden pixels ``(H, W)`` the model has filled in from the others.

    The hidden pixels begin as the mean image and are replaced by their reconstruction again and again (pseudo-Gibbs
    sampling; Rezende et al. 2014, appendix F).
    """
    restored = np.where(hidden, mean, pixels)
    for _ in range(INPAINTING_ITERATIONS):
        restored = np.where(hidden, reconstruct(model, restored), pixels)
    return np.asarray(restored, dtype=np.float32)


def psnr(truth: FloatArray, estimate: FloatArray) -> float:
    """Return the peak signal-to-noise ratio in dB, of images with peak 1, from their overall mean squared error."""
    return float(-10 * np.log10(max(_mse(truth, estimate), 1e-12)))


def _restorations(model: ModelUnderTest, detector: Reconstructor, pixels: FloatArray) -> list[Restoration]:
    mean = model.train_images.model_inputs().mean(axis=0)
    hidden = np.zeros(mean.shape, dtype=bool)
    hidden[round(HIDDEN_FRACTION * len(hidden)) :] = True
    noise = np.random.default_rng(model.settings.seed).standard_normal(pixels.shape) * NOISE_SD
    noisy = (pixels + noise).clip(0, 1).astype(np.float32)
    half, filled = (np.where(hidden, value, pixels).astype(np.float32) for value in (0.5, mean))
    rows = "damaged, baseline, restored, original"
    inpainted = inpaint(detector, pixels, hidden, mean)
    return [
        Restoration("inpainting", f"Half hidden: {rows}", half, filled, inpainted),
        Restoration("denoising", f"Noisy: {rows}", noisy, noisy, reconstruct(detector, noisy)),
    ]


def _pca_mse(train: FloatArray, test: FloatArray, size: int) -> float:
    flat = test.reshape(len(test), -1)
    pca = PCA(min(size, flat.shape[1]), svd_solver="covariance_eigh").fit(train.reshape(len(train), -1))
    return _mse(flat, pca.inverse_transform(pca.transform(flat)))


def _probe_accuracy(train: FloatArray, labels: Labels, test: FloatArray, truth: Labels) -> float:
    scaler = StandardScaler().fit(train)
    probe = LogisticRegression(max_iter=500).fit(scaler.transform(train), labels)
    return float(probe.score(scaler.transform(test), truth))


def _precision(train: FloatArray, labels: Labels, test: FloatArray, truth: Labels) -> float:
    """Return the mean share with the same label of the ten training images whose binary codes are nearest."""
    index = build_index(train, np.full(len(train), np.nan), (), "hash")
    nearest = [[found for found, _ in index.nearest(code, N_NEIGHBOURS)] for code in test]
    return float((labels[nearest] == truth[:, None]).mean())


def _decoded_plane(model: Decoder, codes: FloatArray) -> FloatArray:
    mean, sd = codes.mean(axis=0), codes.std(axis=0)
    x, y = np.meshgrid(
        np.linspace(-PLANE_SD, PLANE_SD, PLANE_POINTS), np.linspace(PLANE_SD, -PLANE_SD, PLANE_POINTS)
    )
    points = mean + sd * np.stack([x.ravel(), y.ravel()], axis=1)
    with torch.inference_mode():
        decoded = model.decode(torch.from_numpy(points.astype(np.float32)))
    return np.asarray(decoded[:, 0].float().numpy())


def _mse(truth: FloatArray, estimate: FloatArray) -> float:
    return float(((truth - estimate) ** 2).mean())


def _full_mask(images: Tensor) -> Tensor:
    return torch.ones_like(images, dtype=torch.bool)
