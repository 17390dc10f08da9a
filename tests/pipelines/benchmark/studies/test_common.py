from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.benchmark.studies.common import (
    LESION_KINDS,
    LESIONS_PER_SCAN,
    load_benchmark_model,
    model_paths,
    plant_held_out_scans,
    study_parser,
    table_text,
)
from tests.pipelines.conftest import Trained


def test_training_and_held_out_scans_are_those_of_the_training(trained: Trained) -> None:
    model = load_benchmark_model(trained.model, trained.training)
    training, held_out = (
        {record.subject for record in scans.records} for scans in (model.training_scans, model.held_out)
    )
    assert (len(training), len(held_out)) == (12, 3)
    assert not training & held_out
    assert model.scorer.settings.min_block_correlation == -1.0


def test_every_held_out_scan_gets_lesions_of_each_kind(trained: Trained, lesion_shapes_folder: Path) -> None:
    model = load_benchmark_model(trained.model, trained.training)
    planted = plant_held_out_scans(model, lesion_shapes_folder)
    assert tuple(planted) == LESION_KINDS
    for scans in planted.values():
        assert len(scans) == LESIONS_PER_SCAN * len(model.held_out)
        assert all(scan.lesion.any() and not (scan.lesion & ~scan.mask).any() for scan in scans)
        assert all(np.array_equal(s.mask, model.held_out[n % 3][1]) for n, s in enumerate(scans))


def test_models_are_named_by_their_folder_in_the_benchmark() -> None:
    assert model_paths(Path("work"), "dae,pca") == {"dae": Path("work/models/dae"), "pca": Path("work/models/pca")}


def test_numbers_in_tables_have_three_decimals() -> None:
    assert "| noise | 0.500 |" in table_text(pd.DataFrame([{"scans": "noise", "dae": 0.49996}]))


def test_the_folder_of_lesions_is_required_unless_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANOMALY_DATA", "/data")
    assert study_parser("A table.").parse_args(["work"]).data == Path("/data")
    monkeypatch.delenv("ANOMALY_DATA")
    with pytest.raises(SystemExit):
        study_parser("A table.").parse_args(["work"])
    assert "--data" in capsys.readouterr().err
