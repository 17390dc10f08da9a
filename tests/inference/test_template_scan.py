from __future__ import annotations

import doctest
import zipfile
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import InputError, ScanRefusedError
from anomaly.core.volume import Modality
from anomaly.inference.template_scan import load_scan, prepare_file, prepare_volume
from anomaly.preprocessing.chain import Chain, ChainSettings


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    """Return a chain for T1w that leaves the scan as it is: the steps of real chains are tested elsewhere."""
    from anomaly.core.volume import Volume
    from anomaly.preprocessing.chain import Prepared

    def apply(self: Chain, volume: Volume) -> Prepared:
        mask = volume.voxels > 0
        return Prepared(volume.voxels, mask, volume.geometry, np.eye(4), {"brain_volume_ml": 1200.0})

    monkeypatch.setattr(Chain, "apply", apply)
    return Chain(ChainSettings())


@pytest.fixture
def t1w(sample_data: Path) -> Path:
    return sample_data / "mr" / "sub-53" / "anat" / "sub-53_T1w.nii.gz"


def test_a_nifti_file_is_one_scan(t1w: Path) -> None:
    scan = load_scan(t1w)
    assert (scan.scan_id, scan.modality, scan.voxels.ndim) == ("sub-53_T1w", Modality.T1W, 3)
    assert load_scan(str(t1w)).voxels.dtype == np.float32


def test_a_dicom_folder_is_one_scan_and_so_is_a_zip_of_it(sample_data: Path, tmp_path: Path) -> None:
    folder = sample_data / "dicom" / "ct" / "sub-62"
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    scan, zipped = load_scan(folder), load_scan(tmp_path / "series.zip")

    assert scan.modality is Modality.CT
    np.testing.assert_array_equal(scan.voxels, zipped.voxels)


def test_several_scans_are_named_and_refused(sample_data: Path) -> None:
    with pytest.raises(InputError, match=r"found \d+ scans at .*sub-01_T1w.*expected one"):
        load_scan(sample_data / "mr")


def test_a_path_without_a_scan_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no source at"):
        load_scan(tmp_path / "missing.nii.gz")


def test_a_scan_that_cannot_be_used_says_what_was_found_and_expected(sample_data: Path) -> None:
    with pytest.raises(ScanRefusedError) as refusal:
        load_scan(sample_data / "refuse" / "constant_T1w.nii.gz")
    assert "every voxel" in refusal.value.found
    assert refusal.value.expected == "an image"
    assert refusal.value.remedy


def test_age_and_sex_come_from_the_files_unless_they_are_given(chain: Chain, t1w: Path) -> None:
    participants = (t1w.parents[2] / "participants.tsv").read_text()
    (row,) = [line.split("\t") for line in participants.splitlines() if line.startswith("sub-53")]
    known = prepare_file(t1w, chain).covariates

    assert str(int(known[0])) in row
    assert known[1] == float("M" in row)
    assert prepare_file(t1w, chain, age=33, sex="F").covariates.tolist() == [33, 0]


def test_a_prepared_scan_has_its_own_grid_and_its_numbers(chain: Chain, t1w: Path) -> None:
    scan = load_scan(t1w)
    prepared = prepare_volume(scan, chain)

    assert prepared.geometry is scan.geometry
    assert prepared.scan_id == "sub-53_T1w"
    assert np.isnan(prepared.covariates).all()
    assert {"foreground_ml", "brain_volume_ml"} <= set(prepared.numbers)


def test_another_modality_than_the_chains_is_refused_before_it_is_read(
    chain: Chain, sample_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.io.discover.ScanSource.read", lambda self: pytest.fail("the file was read"))
    with pytest.raises(ScanRefusedError) as refusal:
        prepare_file(sample_data / "ct" / "sub-66" / "ct" / "sub-66_ct.nii.gz", chain)
    assert refusal.value.code == "wrong_modality"


def test_a_scan_of_unknown_modality_is_taken_for_the_chains_with_a_warning(chain: Chain, t1w: Path) -> None:
    from dataclasses import replace

    prepared = prepare_volume(replace(load_scan(t1w), modality=Modality.UNKNOWN), chain)
    assert len(prepared.warnings) == 1
    assert "T1w" in prepared.warnings[0]


def test_the_example_of_the_docstring_runs(sample_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sample_data.parent)
    (example,) = doctest.DocTestFinder().find(load_scan, "load_scan")
    assert doctest.DocTestRunner().run(example) == (0, 3)
