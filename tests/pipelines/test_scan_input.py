from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.bundle.config import ModelConfig
from anomaly.cohort.table import read_records
from anomaly.core.errors import CohortError, ConfigError
from anomaly.core.files import read_json, write_json
from anomaly.preprocessing.bone import BoneSettings
from anomaly.preprocessing.chain import ChainSettings
from anomaly.scoring.settings import EvidenceSettings
from pipelines.scan_input import check_chain, healthy_records, is_cohort, open_scans
from tests.pipelines.cohorts import OBLIQUE, add_refused, add_warning, healthy, make_cohort

CONFIG = ModelConfig(name="any", preprocessing=ChainSettings(), scoring=EvidenceSettings())


def test_ingested_scans_come_in_order_and_can_be_loaded(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [2, 3])
    scans = open_scans([cohort], tmp_path / "work", CONFIG, jobs=1)
    first, second = scans
    loaded = first.load()

    assert scans.total == 2
    assert [scan.record.scan_id for scan in (first, second)] == ["sub-002_T1w", "sub-003_T1w"]
    np.testing.assert_array_equal(loaded.voxels, healthy(2)[0])
    np.testing.assert_array_equal(loaded.geometry.affine, OBLIQUE)
    assert loaded.covariates[0] == 42
    assert loaded.numbers == {"brain_volume_ml": 1.0}


def test_a_refused_scan_comes_with_its_record(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [2])
    add_refused(cohort, read_records(cohort))
    reasons = [scan.record.reason_code for scan in open_scans([cohort], tmp_path / "work", CONFIG, jobs=1)]
    assert reasons == ["", "not_3d"]


def test_only_scans_of_the_split_and_those_without_one_are_opened(tmp_path: Path) -> None:
    test = make_cohort(tmp_path / "test", [2], split="test")
    train = make_cohort(tmp_path / "train", [3], split="train")
    none = make_cohort(tmp_path / "none", [4])
    scans = open_scans([test, train, none], tmp_path / "work", CONFIG, jobs=1, split="test")

    assert [scan.record.scan_id for scan in scans] == ["sub-002_T1w", "sub-004_T1w"]
    with pytest.raises(
        CohortError, match=r"belongs to split 'test'; splits present: train \(1\); give one of them"
    ):
        open_scans([train], tmp_path / "work", CONFIG, jobs=1, split="test")


def test_a_split_that_is_required_must_be_named_by_a_scan(tmp_path: Path) -> None:
    train, none = make_cohort(tmp_path / "a", [2, 3], split="train"), make_cohort(tmp_path / "b", [4])
    for sources, present in (([train, none], r"train \(2\); 1 without a split"), ([none], "1 without a split")):
        with pytest.raises(CohortError, match=f"splits present: {present}"):
            open_scans(sources, tmp_path / "work", CONFIG, jobs=1, split="test", split_required=True)
    assert open_scans([none], tmp_path / "work", CONFIG, jobs=1, split="test").total == 1


def test_the_warnings_of_a_scan_come_with_it(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [2])
    add_warning(cohort, "found 27 different values; expected at least 40")
    (scan,) = open_scans([cohort], tmp_path / "work", CONFIG, jobs=1)
    assert scan.load().warnings == ("found 27 different values; expected at least 40",)


def test_a_cohort_of_another_chain_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [2])
    values = read_json(cohort / "cohort.json")
    values["chain"]["grid"]["spacing_mm"] = 3.0
    write_json(cohort / "cohort.json", values)
    with pytest.raises(ConfigError, match=r"another chain than this model's \(different: grid\)"):
        check_chain(cohort, CONFIG)


def test_an_unfinished_cohort_is_refused(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [2])
    write_json(cohort / "cohort.json", read_json(cohort / "cohort.json") | {"complete": False})
    with pytest.raises(CohortError, match="is not finished"):
        check_chain(cohort, CONFIG)


def test_healthy_scans_are_those_of_the_split_where_there_are_splits(tmp_path: Path) -> None:
    train, undivided = make_cohort(tmp_path / "a", [3, 2], split="train"), make_cohort(tmp_path / "b", [4])
    assert [record.scan_id for record in healthy_records(train, CONFIG, "train")] == ["sub-002_T1w", "sub-003_T1w"]
    assert len(healthy_records(undivided, CONFIG, "train")) == 1
    with pytest.raises(CohortError, match="no accepted healthy T1w scan for split 'calibration'"):
        healthy_records(train, CONFIG, "calibration")


def test_a_folder_without_a_cohort_file_is_no_cohort(tmp_path: Path) -> None:
    assert is_cohort(make_cohort(tmp_path / "cohort", [2]))
    assert not is_cohort(tmp_path)


def test_a_cohort_that_was_made_before_a_step_existed_fits_a_chain_that_leaves_it_out(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [2])
    path = cohort / "cohort.json"
    values = read_json(path)
    del values["chain"]["bone"]
    write_json(path, values)
    check_chain(cohort, CONFIG)

    with_bone = CONFIG.preprocessing.model_copy(update={"bone": BoneSettings(margin_mm=2)})
    with pytest.raises(ConfigError, match="different: bone"):
        check_chain(cohort, CONFIG.model_copy(update={"preprocessing": with_bone}))
