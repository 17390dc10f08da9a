"""Check of latent codes on avatars: can an attribute be added and removed, and is the midpoint of two codes valid?

    d      = mean code of avatars with sunglasses − mean code of avatars without accessory,   of training images
    x'     = decode(code of another avatar without accessory + d)

The classifier must read x' as the same avatar with sunglasses, all other attributes unchanged; and the other way
round with −d. At the midpoint of two codes, each attribute should be that of one of the two avatars.

Source: Larsen et al. 2016, "Autoencoding beyond pixels" (attribute vectors); Radford, Metz & Chintala 2016
(arithmetic on codes).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from anomaly.core.volume import FloatArray
from anomaly.models.generation import Decoder, Embedder
from pipelines.validation.checks.avatars.validity import Validity, assess_validity, avatars_of, unsupported
from pipelines.validation.checks.latent_codes import embed
from pipelines.validation.datasets.avatars.distribution import VALUES, Attributes
from pipelines.validation.labelled_dataset import BATCH_SIZE, NOT_VISIBLE, LabelledImages
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import image_grid

ACCESSORY = Attributes._fields.index("accessories_type")
NO_ACCESSORY, SUNGLASSES = (VALUES[ACCESSORY].index(value) for value in ("Blank", "Sunglasses"))
N_SHOWN = 15
N_TRAIN_IMAGES = 2000  # training images that give the attribute vector d


def check_latent_arithmetic(model: ModelUnderTest) -> CheckResult:
    """Measure arithmetic on codes; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family has no code that it can decode, or the dataset is not avatars.
    """
    detector, dataset = model.detector, model.dataset
    if not (isinstance(detector, Embedder) and isinstance(detector, Decoder)):
        raise unsupported(model, "latent_arithmetic", "has no code that it can decode")
    bank, test = avatars_of(dataset).image_bank, model.novel_test_images
    vector = _sunglasses_vector(detector, model.train_images.select(slice(N_TRAIN_IMAGES)))
    measures, images, shares = dict[str, float](), dict[str, bytes](), list[float]()
    for name, before, after, direction in (
        ("added", NO_ACCESSORY, SUNGLASSES, vector),
        ("removed", SUNGLASSES, NO_ACCESSORY, -vector),
    ):
        some = test.select(test.labels[:, ACCESSORY] == before)
        truth = some.labels.copy()
        truth[:, ACCESSORY] = after
        decoded = decode(detector, embed(detector, some.pixels) + direction)
        found = assess_validity(dataset, decoded)
        unchanged = np.delete(found.codes == truth, ACCESSORY, axis=1).all(axis=1)
        changed = found.codes[:, ACCESSORY] == after
        measures |= {name: float(changed.mean()), f"{name}_others_unchanged": float(unchanged.mean())}
        shares.append(float((changed & unchanged).mean()))
        rows = np.concatenate([part[:N_SHOWN] for part in (some.pixels, decoded, bank.mosaics(truth))])
        images[f"Sunglasses {name}: before, after, drawing"] = image_grid(
            dataset.to_display(rows), min(N_SHOWN, len(some.pixels))
        )
    measures |= {"success": float(np.mean(shares)), "success_lowest": min(shares)}
    half = len(test.pixels) // 2
    midpoints = (embed(detector, test.pixels[:half]) + embed(detector, test.pixels[half : 2 * half])) / 2
    measures |= midpoint_measures(assess_validity(dataset, decode(detector, midpoints)), test)
    return CheckResult(measures, images)


def decode(model: Decoder, codes: npt.NDArray[np.floating]) -> FloatArray:
    """Return the images ``(N, H, W)`` of codes ``(N, D)``."""
    with torch.inference_mode():
        parts = [model.decode(some)[:, 0] for some in torch.from_numpy(codes).float().split(BATCH_SIZE)]
    return np.asarray(torch.cat(parts).float().numpy().clip(0, 1), dtype=np.float32)


def midpoint_measures(found: Validity, test: LabelledImages) -> dict[str, float]:
    """Return how many midpoints are valid, and the share of their attributes that one of the two avatars has."""
    n = len(found.codes)
    first, second = test.labels[:n], test.labels[n : 2 * n]
    of_either = (found.codes == first) | (found.codes == second) | (found.codes == NOT_VISIBLE)
    return {"midpoint_valid": float(found.valid.mean()), "midpoint_of_either": float(of_either.mean())}


def _sunglasses_vector(model: Embedder, images: LabelledImages) -> FloatArray:
    """Return the mean code with sunglasses minus the mean code without accessory."""
    accessory, codes = images.labels[:, ACCESSORY], embed(model, images.pixels)
    difference = codes[accessory == SUNGLASSES].mean(axis=0) - codes[accessory == NO_ACCESSORY].mean(axis=0)
    return np.asarray(difference)
