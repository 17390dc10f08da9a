from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.volume import Geometry, MaskArray, Volume
from anomaly.export.nifti import write_nifti
from anomaly.preprocessing.chain import ChainSettings
from pipelines.benchmark.studies import preprocessing
from pipelines.benchmark.studies.preprocessing import main, measure_brain_extraction

GRID = Geometry((8, 8, 8), np.diag([4.0, 4.0, 4.0, 1.0]))


def write_head(folder: Path, subject: str) -> MaskArray:
    """Write a head and its brain mask, and return the mask."""
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[2:6, 2:6, 2:6] = True
    write_nifti(folder / subject / "anat" / f"{subject}_T1w.nii.gz", mask * np.float32(100), GRID)
    write_nifti(folder / subject / "anat" / f"{subject}_desc-brain_mask.nii.gz", mask, GRID, "uint8")
    return mask


def test_extracted_brains_are_compared_with_the_masks_of_the_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half_brain(volume: Volume, settings: object) -> tuple[MaskArray, dict[str, float]]:
        mask = volume.voxels > 0
        mask[:4] = False
        return mask, {}

    write_head(tmp_path, "sub-1")
    write_head(tmp_path, "sub-2")
    monkeypatch.setattr(preprocessing, "find_brain", half_brain)

    assert measure_brain_extraction(tmp_path, ChainSettings()) == pytest.approx([2 / 3, 2 / 3])
    assert "n 2, Dice mean 0.667, SD 0.000, lowest 0.667; volume ratio 0.500" in capsys.readouterr().out


def test_without_the_folder_of_scans_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ANOMALY_DATA", raising=False)
    assert main([]) == 2
    assert "ANOMALY_DATA is not set" in capsys.readouterr().err
