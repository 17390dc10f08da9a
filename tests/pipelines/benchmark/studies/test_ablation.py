from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from anomaly.core.errors import ConfigError
from pipelines.benchmark.studies.ablation import PUBLISHED, ablation, variants
from pipelines.common import find_config
from tests.pipelines.cohorts import GRID, make_cohort, write_config


def config_of(path: Path) -> Path:
    values = yaml.safe_load(write_config(path, "ae", view={"kind": "slice"}, channels=[8, 16]).read_text())
    path.write_text(yaml.safe_dump(values | {"training": {"batch_size": 4}}))
    return path


def shape_folder(folder: Path) -> Path:
    folder.mkdir()
    distance = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - (6, 9, 7), axis=-1)
    nib.save(nib.Nifti1Image((distance < 2.5).astype(np.uint8), GRID.affine), folder / "0.nii.gz")
    return folder


@pytest.mark.slow
def test_each_variant_is_trained_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, cohort = config_of(tmp_path / "ae.yaml"), make_cohort(tmp_path / "cohort", range(8))
    shapes, reported = shape_folder(tmp_path / "shapes"), list[tuple[int, int]]()

    def run(neighbours: list[int]) -> pd.DataFrame:
        reported.clear()
        return ablation(
            config, {"model.view.neighbours": neighbours}, cohort, shapes, tmp_path / "output",
            steps=4, device="cpu", progress=lambda done, total, message: reported.append((done, total)),
        )  # fmt: skip

    first = run([1])
    assert first["variant"].tolist() == ["as shipped", "`model.view.neighbours: 1`"]
    assert ((first[["dark, AP", "bright, AP"]] > 0) & (first[["dark, AP", "bright, AP"]] <= 1)).all(axis=None)
    assert reported.count((4, 4)) == 2
    assert first["best step"].isin(range(1, 5)).all()
    again = run([1, 2])
    assert reported.count((4, 4)) == 1
    pd.testing.assert_frame_equal(again[:2], first)
    monkeypatch.setattr("pipelines.benchmark.studies.ablation.train", None)
    row = next((tmp_path / "output").rglob("row.json"))
    row.unlink()
    pd.testing.assert_frame_equal(run([1, 2]), again)  # measured anew, not trained anew


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("model.view.colour", 1, "model.view.colour: unknown setting 'colour'; valid: .*neighbours"),
        ("model.latent_size.more", 1, "unknown setting 'more'"),
        ("model.latent_size", -1, "latent_size"),
    ],
)
def test_a_setting_that_is_not_valid_is_refused_before_anything_is_trained(
    setting: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        ablation(config_of(tmp_path / "ae.yaml"), {setting: [value]}, tmp_path, tmp_path, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_config_that_is_not_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="no section training"):
        list(variants(find_config("atlas", "models"), {}, 10))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_variant_is_valid(name: str) -> None:
    found = dict(variants(find_config(name, "models"), PUBLISHED[name], 1000))
    assert len(found) == 1 + sum(len(values) for values in PUBLISHED[name].values())
    assert all(config["training"]["steps"] == 1000 for config in found.values())
    assert len({str(config) for config in found.values()}) == len(found)
