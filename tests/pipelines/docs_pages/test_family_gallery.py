from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomaly.models.ae import Autoencoder, AutoencoderSettings
from pipelines.benchmark.studies.common import load_benchmark_model
from pipelines.docs_pages.family_gallery import N_SAMPLES, draw, gallery, samples_of
from tests.models.factories import GRID as MODEL_GRID
from tests.pipelines.conftest import Trained


@pytest.mark.slow
def test_the_figure_of_a_model_has_its_name(trained: Trained, tmp_path: Path) -> None:
    (path,) = gallery([trained.model], trained.training, None, tmp_path)
    assert path == tmp_path / f"{trained.model.name}.png"
    assert np.asarray(Image.open(path).convert("L")).std() > 10


@pytest.mark.slow
def test_a_figure_is_reproducible(trained: Trained) -> None:
    model = load_benchmark_model(trained.model, trained.training)
    first, second = (np.asarray(Image.open(io.BytesIO(draw(model, None))).convert("L")) for _ in range(2))
    assert np.array_equal(first, second)


class Generates(Autoencoder):
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.rand((n, self.view.channels, *self.image_shape), generator=rng)


def test_samples_of_every_view_are_upright_planes() -> None:
    for kind, shape in (("slice", (20, 16)), ("volume", (20, 16))):
        settings = AutoencoderSettings.parse(
            {"view": {"kind": kind}, "channels": [8, 8], "latent_size": 4}, "model"
        )
        samples = samples_of(Generates(settings, MODEL_GRID))
        assert [sample.shape for sample in samples] == [shape] * N_SAMPLES
