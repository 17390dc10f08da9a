from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.scan_result import ScanResult, TemplateVolumes
from anomaly.core.volume import Geometry
from anomaly.export.outputs import ANOMALY_MAP, FLAGGED_MASK, WRITERS, write_outputs

GRID = Geometry((4, 5, 6), np.array([[0, -2, 0, 1], [2, 0, 0, 3], [0, 0, 3, -9], [0, 0, 0, 1.0]]))


@pytest.fixture
def result(rng: np.random.Generator) -> ScanResult:
    evidence = rng.random(GRID.shape).astype(np.float32)
    template = TemplateVolumes(evidence, evidence, evidence, evidence > 0, GRID)
    return ScanResult("sub-01_T1w", "kl", {"kl": 1.0}, evidence, evidence > 0.7, GRID, template)


def test_the_map_and_the_mask_lie_on_the_scans_own_grid(result: ScanResult, tmp_path: Path) -> None:
    paths = write_outputs(tmp_path / "sub-01_T1w", result)
    evidence, mask = (nib.load(paths[name]) for name in (ANOMALY_MAP, FLAGGED_MASK))

    np.testing.assert_allclose(evidence.affine, GRID.affine)
    np.testing.assert_allclose(evidence.get_fdata(), result.evidence, atol=1 / 32767)
    np.testing.assert_array_equal(mask.get_fdata() > 0, result.flagged_mask)


def test_files_are_named_after_the_scan(result: ScanResult, tmp_path: Path) -> None:
    names = [path.name for path in write_outputs(tmp_path, result).values()]
    assert names == ["sub-01_T1w_desc-anomaly_map.nii.gz", "sub-01_T1w_desc-flagged_mask.nii.gz"]


def test_only_the_named_outputs_are_written(result: ScanResult, tmp_path: Path) -> None:
    assert list(write_outputs(tmp_path, result, [FLAGGED_MASK])) == [FLAGGED_MASK]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_format_that_is_added_is_written_with_the_others(
    result: ScanResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_summary(folder: Path, result: ScanResult) -> Path:
        path = folder / "summary.txt"
        path.write_text(f"{result.scan_id} {result.score}")
        return path

    monkeypatch.setitem(WRITERS, "summary", write_summary)
    paths = write_outputs(tmp_path, result)
    assert list(paths) == [ANOMALY_MAP, FLAGGED_MASK, "summary"]
    assert paths["summary"].read_text() == "sub-01_T1w 1.0"
