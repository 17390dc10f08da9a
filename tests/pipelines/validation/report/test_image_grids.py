from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.validation.report.image_grids import points


def test_points_are_drawn_for_each_name() -> None:
    few, more = (points({str(n): [0.9, 0.95] for n in range(k)}, "AUROC") for k in (1, 3))
    blue = [
        (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == [0, 114, 178]).all(2).sum()
        for png in (few, more)
    ]
    assert blue[1] > 2 * blue[0] > 0
