"""Brain extraction of CT heads."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.core.overlap import dice
from anomaly.core.volume import Modality
from anomaly.preprocessing.extract_ct import ExtractCtSettings, extract_ct
from anomaly.preprocessing.extract_mr import ExtractMrSettings
from tests.preprocessing.phantoms import head, placement

QUICK = ExtractMrSettings(iterations=(30, 30, 10), sampling=0.05, grow_mm=0)


@pytest.mark.slow
def test_the_brain_is_found_inside_the_skull_with_its_bleed() -> None:
    volume, mask = head(placement(), Modality.CT)
    bleed = np.zeros_like(mask)
    bleed[24:28, 26:30, 26:30] = True
    found = extract_ct(volume.with_voxels(np.where(bleed, 90, volume.voxels)), ExtractCtSettings(), QUICK)
    assert found[bleed].all()
    assert dice(found, mask) > 0.93


def test_voxels_that_are_not_hounsfield_units_are_refused() -> None:
    volume, _ = head(placement(), Modality.CT)
    with pytest.raises(ScanRefusedError, match="Hounsfield") as refused:
        extract_ct(volume.with_voxels(volume.voxels + 3000), ExtractCtSettings(), QUICK)
    assert refused.value.code == "no_soft_tissue"
