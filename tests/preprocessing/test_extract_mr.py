"""Brain extraction of MR heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.overlap import dice
from anomaly.core.volume import Modality
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.extract_mr import ExtractMrSettings, extract_mr
from anomaly.preprocessing.orient import to_ras
from tests.preprocessing.phantoms import head, placement

QUICK = ExtractMrSettings(iterations=(30, 30, 10), sampling=0.05, grow_mm=0)


@pytest.mark.slow
@pytest.mark.parametrize("modality", [Modality.T2W, Modality.FLAIR])
def test_the_brain_is_found_in_a_head(modality: Modality) -> None:
    volume, mask = head(placement(), modality)
    assert dice(extract_mr(volume, QUICK), mask) > 0.95


@pytest.mark.slow
def test_the_same_head_gives_the_same_mask() -> None:
    volume, mask = head(placement(-10.0, 0.85))
    first, second = (extract_mr(volume, QUICK) for _ in range(2))
    assert np.array_equal(first, second)
    assert dice(first, mask) > 0.95


@pytest.mark.real_data
@pytest.mark.parametrize("subject", ["sub-IXI012", "sub-IXI130"])
def test_real_heads_agree_with_the_given_masks(anomaly_data: Path, subject: str) -> None:
    folder = anomaly_data / "ixi_head" / subject / "anat"
    volume = to_ras(read_nifti(folder / f"{subject}_T1w.nii.gz"))
    mask = to_ras(read_nifti(folder / f"{subject}_desc-brain_mask.nii.gz")).voxels > 0
    assert dice(extract_mr(volume, ExtractMrSettings()), mask) > 0.93
