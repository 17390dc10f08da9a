"""Quality checks: which scans are refused or marked, and with which message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import ConfigError, ScanRefusedError
from anomaly.core.volume import Geometry, Modality, ScanWarning, Volume
from anomaly.io.discover import discover
from anomaly.qc.checks import Finding, Level, QcSettings, check, raise_first_refusal
from anomaly.qc.metrics import image_quality_metrics
from tests.conftest import make_volume


def brain(modality: Modality = Modality.T1W) -> Volume:
    return make_volume(shape=(40, 46, 38), spacing=4.0, modality=modality)


def head_ct() -> Volume:
    volume = brain(Modality.CT)
    return volume.with_voxels(np.where(volume.voxels > 0, volume.voxels * 0.3, -1000))


def findings(volume: Volume, expected: Modality = Modality.UNKNOWN) -> list[Finding]:
    return check(volume, image_quality_metrics(volume), expected)


def codes(volume: Volume, expected: Modality = Modality.UNKNOWN) -> list[str]:
    return [f.code for f in findings(volume, expected) if f.level is Level.REFUSAL]


def respaced(volume: Volume, *spacing: float) -> Volume:
    return replace(volume, geometry=Geometry(volume.voxels.shape, np.diag([*spacing, 1.0])))


def test_a_plain_brain_has_no_findings() -> None:
    assert findings(brain(), Modality.T1W) == []
    assert findings(head_ct(), Modality.CT) == []


def test_another_modality_than_expected_is_refused() -> None:
    assert codes(brain(), Modality.CT) == ["wrong_modality"]
    assert codes(head_ct(), Modality.T1W) == ["wrong_modality"]


def test_a_small_field_of_view_is_refused() -> None:
    assert "field_of_view" in codes(respaced(brain(), 4, 4, 2))


def test_too_few_slices_are_refused() -> None:
    assert "too_few_slices" in codes(make_volume(shape=(40, 46, 12), spacing=8.0))


def test_thick_slices_are_refused() -> None:
    assert codes(respaced(brain(), 4, 4, 9)) == ["thick_slices"]


def test_a_label_map_is_refused() -> None:
    assert codes(brain().with_voxels((brain().voxels > 0) * 3)) == ["label_map"]


def test_a_mostly_empty_image_is_refused() -> None:
    voxels = np.zeros(brain().voxels.shape)
    voxels[20:25, 20:25, 20:25] = np.arange(125).reshape(5, 5, 5)
    assert codes(brain().with_voxels(voxels)) == ["mostly_empty"]


def test_ct_under_the_name_of_mr_is_refused() -> None:
    assert codes(replace(head_ct(), modality=Modality.T1W), Modality.T1W) == ["wrong_modality"]


def test_mr_with_a_few_negative_voxels_is_fine() -> None:
    volume = brain()
    voxels = volume.voxels - 300 * (np.random.default_rng(0).random(volume.voxels.shape) < 0.01)
    assert codes(volume.with_voxels(voxels), Modality.T1W) == []


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1.0, 1024.0), (40.0, 0.0), (0.0001, 0.0)], ids=["not rescaled", "too large", "0 to 1"]
)
def test_a_ct_that_is_not_in_hounsfield_units_is_refused(slope: float, intercept: float) -> None:
    volume = head_ct()
    assert codes(volume.with_voxels(volume.voxels * slope + intercept)) == ["not_hounsfield"]


def test_a_ct_without_its_air_is_fine() -> None:
    volume = head_ct()
    assert codes(volume.with_voxels(np.where(volume.voxels < -500, 0, volume.voxels))) == []


def test_a_body_part_other_than_the_head_is_marked() -> None:
    (finding,) = findings(replace(brain(), meta={"body_part": "CHEST"}))
    assert (finding.level, finding.code) == (Level.WARNING, "body_part")
    assert findings(replace(brain(), meta={"body_part": "HEADNECK"})) == []


def test_a_problem_that_the_reader_found_is_a_warning_of_the_scan() -> None:
    problem = ScanWarning("sform_qform", "an sform 3 mm from the qform", "one affine", "convert it again")
    (finding,) = findings(replace(brain(), warnings=(problem,)))
    assert finding == Finding(Level.WARNING, problem.code, problem.found, problem.expected, problem.remedy)


def test_a_scan_of_assumed_modality_is_marked() -> None:
    (finding,) = findings(replace(brain(), meta={"assumed": "T1w"}))
    assert finding.code == "modality_assumed"


def test_few_grey_levels_are_marked() -> None:
    volume = brain()
    (finding,) = findings(volume.with_voxels(np.round(volume.voxels / 2)))
    assert (finding.level, finding.code) == (Level.WARNING, "coarse_values")


def test_a_refusal_says_what_was_found_expected_and_what_to_do() -> None:
    with pytest.raises(ScanRefusedError) as caught:
        raise_first_refusal(findings(respaced(brain(), 4, 4, 2)))
    assert caught.value.code == "field_of_view"
    assert str(caught.value) == (
        "found a field of view of 76 mm; expected at least 100 mm along every axis; "
        "give a scan that covers the whole brain"
    )


def test_warnings_do_not_refuse() -> None:
    raise_first_refusal(findings(replace(brain(), meta={"body_part": "CHEST"})))


def test_an_unknown_threshold_is_an_error_that_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="min_extent_mm"):
        QcSettings.parse({"min_extend_mm": 90}, where="qc")


@pytest.mark.parametrize("name", ["mr", "ct", "head"])
def test_every_scan_of_the_sample_data_passes(sample_data: Path, name: str) -> None:
    for scan in discover([sample_data / name])[::5]:
        volume = scan.read()
        assert codes(volume, Modality.CT if name == "ct" else Modality.T1W) == [], scan.scan_id


def test_the_tiny_field_of_view_of_the_sample_data_is_refused(sample_data: Path) -> None:
    (scan,) = discover([sample_data / "refuse" / "tiny_field_of_view_T1w.nii.gz"])
    assert codes(scan.read())[0] in {"field_of_view", "too_few_slices"}


@pytest.mark.real_data
def test_real_brains_pass(anomaly_data: Path) -> None:
    scans = discover([anomaly_data / "ixi", anomaly_data / "ixi_head", anomaly_data / "pathology"])
    for scan in [*scans[::12], *scans[-4:]]:
        assert codes(scan.read(), Modality.T1W) == [], scan.scan_id


@pytest.mark.real_data
def test_the_real_body_ct_is_refused_for_its_field_of_view(anomaly_data: Path) -> None:
    (scan,) = discover([anomaly_data / "dicom" / "ct_body_jpeg2000.zip"])
    assert codes(scan.read(), Modality.CT) == ["field_of_view"]


def test_t1w_after_contrast_agent_is_accepted_as_t1w_with_a_warning() -> None:
    (finding,) = findings(brain(Modality.T1W_CE), Modality.T1W)
    assert (finding.level, finding.code) == (Level.WARNING, "contrast_agent")
    assert finding.message == "found a T1w scan after contrast agent; expected a T1w scan without"


def test_a_model_for_scans_after_contrast_agent_accepts_only_those() -> None:
    assert findings(brain(Modality.T1W_CE), Modality.T1W_CE) == []
    assert codes(brain(Modality.T1W), Modality.T1W_CE) == ["wrong_modality"]
    assert codes(brain(Modality.T1W_CE), Modality.T2W) == ["wrong_modality"]
