"""The preprocessing chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from anomaly.core.config import load_yaml
from anomaly.core.errors import ConfigError, ScanRefusedError
from anomaly.core.overlap import dice
from anomaly.core.volume import MaskArray, Modality, Volume
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.bias_field import BiasFieldSettings
from anomaly.preprocessing.chain import Chain, ChainSettings, Prepared
from anomaly.preprocessing.grid import GridSettings, to_scan_grid, to_target_grid
from anomaly.preprocessing.intensity import normalise
from anomaly.preprocessing.registration import RegistrationSettings
from anomaly.preprocessing.template import template_on
from pipelines.ingest import load_chain
from tests.preprocessing.phantoms import brain, head, placement

pytestmark = pytest.mark.slow  # prepares whole scans

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "preprocessing"
COARSE = GridSettings(spacing_mm=4.0)
FAST = ChainSettings(grid=COARSE, bias_field=BiasFieldSettings(iterations=(5,)))


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, MaskArray]:
    return brain(placement())


@pytest.fixture(scope="module")
def prepared(scan: tuple[Volume, MaskArray]) -> Prepared:
    return Chain(FAST).apply(scan[0])


def test_a_brain_is_resampled_to_the_template_grid(scan: tuple[Volume, MaskArray], prepared: Prepared) -> None:
    volume, mask = scan
    assert prepared.voxels.shape == prepared.mask.shape == prepared.grid.shape == (48, 48, 48)
    assert prepared.voxels.dtype == np.float32
    assert not prepared.voxels[~prepared.mask].any()
    assert prepared.numbers["was_extracted"] == 1
    assert prepared.numbers["registration_overlap"] > 0.95
    assert prepared.numbers["brain_volume_ml"] == pytest.approx(mask.sum() * volume.geometry.voxel_ml, rel=0.02)
    assert prepared.numbers["outside_grid"] < 0.02
    assert {"seconds_brain_mask", "seconds_registration"} <= prepared.numbers.keys()


@pytest.mark.slow
def test_the_same_scan_gives_the_same_bits(scan: tuple[Volume, MaskArray], prepared: Prepared) -> None:
    again = Chain(FAST).apply(scan[0])
    assert np.array_equal(again.voxels, prepared.voxels)
    assert np.array_equal(again.template_from_scan, prepared.template_from_scan)


def test_the_mask_can_be_resampled_back_to_the_scan(scan: tuple[Volume, MaskArray], prepared: Prepared) -> None:
    volume, mask = scan
    back = to_scan_grid(prepared.mask, prepared.grid, volume.geometry, prepared.template_from_scan) > 0.5
    assert dice(back, mask) > 0.97


@pytest.mark.slow
def test_a_ct_head_goes_through_the_shipped_ct_chain() -> None:
    settings = ChainSettings.parse(load_yaml(CONFIGS / "ct.yaml") | {"grid": {"spacing_mm": 4.0}}, "ct.yaml")
    prepared = Chain(settings).apply(head(placement(), Modality.CT)[0])
    assert prepared.numbers["was_extracted"] == 0
    assert prepared.numbers["registration_overlap"] > 0.93
    assert 0 <= prepared.voxels.min() <= prepared.voxels.max() <= 1


@pytest.mark.slow
def test_a_scan_after_contrast_agent_is_prepared_like_one_without(
    scan: tuple[Volume, MaskArray], prepared: Prepared
) -> None:
    enhanced = Chain(FAST).apply(replace(scan[0], modality=Modality.T1W_CE))
    np.testing.assert_array_equal(enhanced.voxels, prepared.voxels)


def test_a_chain_for_scans_after_contrast_agent_refuses_one_without() -> None:
    with pytest.raises(ScanRefusedError, match="found a T1w scan; expected a T1ce scan"):
        Chain(ChainSettings(grid=COARSE, modality=Modality.T1W_CE)).apply(head(modality=Modality.T1W)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flair", "t2w"])
@pytest.mark.parametrize("make", [brain, head])
def test_brains_and_heads_of_other_contrasts_go_through_their_shipped_chain(
    name: str, make: Callable[..., tuple[Volume, MaskArray]]
) -> None:
    settings = load_chain(name).model_copy(update={"grid": COARSE})
    volume, mask = make(placement(), settings.modality)
    found = Chain(settings).apply(volume)
    assert found.numbers["registration_overlap"] > 0.92
    moved = to_scan_grid(found.mask, found.grid, volume.geometry, found.template_from_scan) >= 0.5
    assert dice(moved, mask) > 0.9
    white = template_on(4.0).white > 0.9
    assert np.median(found.voxels[found.mask & white]) == pytest.approx(settings.intensity.white_value, abs=0.05)


@pytest.mark.slow
def test_thick_slices_of_a_ct_show_no_rim_of_bone_and_blood_at_the_skull_stays(sample_data: Path) -> None:
    """The scan of sub-112 has slices of 5 mm and an epidural bleed of 65 HU."""
    folder, name = sample_data / "ct", "sub-112/ct/sub-112"
    scan = read_nifti(folder / f"{name}_ct.nii.gz", modality=Modality.CT)
    lesion = read_nifti(folder / "derivatives" / "lesions" / f"{name}_label-lesion_mask.nii.gz")
    chain = Chain(load_chain("ct-4mm"))
    found = chain.apply(scan)
    share = to_target_grid(lesion, found.grid, found.template_from_scan, order=1)
    rim = found.mask & ~ndimage.binary_erosion(found.mask)
    of_55_hu = normalise(np.full_like(found.voxels, 55), found.mask, chain.template, chain.settings.intensity).max()
    assert np.percentile(found.voxels[rim & (share < 0.01)], 95) < of_55_hu
    assert np.median(found.voxels[rim & (share > 0.9)]) > of_55_hu
    assert (share > 0.5)[found.mask].sum() > 0.65 * (share > 0.5).sum()  # the rest shares its voxels with bone


def test_a_scan_of_another_modality_is_refused() -> None:
    with pytest.raises(ScanRefusedError, match="found a CT scan; expected a T1w"):
        Chain(ChainSettings(grid=COARSE)).apply(head(modality=Modality.CT)[0])


@pytest.mark.slow
def test_a_poor_registration_refuses_the_scan() -> None:
    chain = Chain(
        FAST.model_copy(update={"registration": RegistrationSettings(min_overlap=1.0, iterations=(5, 5, 2))})
    )
    with pytest.raises(ScanRefusedError) as refused:
        chain.apply(brain(placement())[0])
    assert refused.value.code == "registration_overlap"


def test_an_unknown_key_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="spacing_mm"):
        ChainSettings.parse({"grid": {"voxel_size": 2}}, "test")


def test_the_shipped_t1w_chain_is_the_default() -> None:
    assert ChainSettings.parse(load_yaml(CONFIGS / "t1w.yaml"), "t1w.yaml") == ChainSettings()


@pytest.mark.real_data
@pytest.mark.parametrize("subject", ["MS07", "STROKE1", "TCGADU7294", "TCGAFG6692"])
def test_diseased_brains_are_aligned(anomaly_data: Path, subject: str) -> None:
    path = anomaly_data / "pathology" / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
    prepared = Chain(ChainSettings()).apply(read_nifti(path))
    assert prepared.numbers["registration_overlap"] > 0.93
    assert prepared.numbers["was_extracted"] == 1
