from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from anomaly.bundle.store import load_bundle
from anomaly.calibration.record import records
from anomaly.core.errors import BundleError, CohortError
from anomaly.inference.model import load_model
from pipelines.audit import verify
from pipelines.shipped_models import make
from pipelines.shipped_models.make import make_shipped_model
from tests.pipelines.cohorts import make_cohort, write_config

pytestmark = pytest.mark.slow  # trains and calibrates

N_SUBJECTS, N_CALIBRATION = 40, 20


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("healthy") / "cohort", range(N_SUBJECTS))


def write_settings(folder: Path, **changes: object) -> Path:
    """Write the settings of a shipped model called ``small``, and the config of the atlas that it is."""
    folder.mkdir(exist_ok=True)
    write_config(folder / "atlas.yaml")
    values = {
        "config": "atlas.yaml",
        "healthy": "healthy",
        "calibration_subjects": N_CALIBRATION,
        "reference": "one scanner",
        "attribution": "Made from synthetic scans.",
        "licence": "CC0",
        "limits": ["Only for tests."],
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model from the command line, and return the folder of settings, work and output."""
    folder = tmp_path_factory.mktemp("made")
    command = ["make", str(write_settings(folder)), "--data", "none", "--cohort", str(cohort)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGNAME", "ada.lovelace")
        patch.setattr(sys, "argv", [*command, "--work", str(folder / "work"), "--output", str(folder / "small")])
        make.main()
    return folder


def test_a_shipped_model_is_complete_calibrated_and_sealed(made: Path) -> None:
    model = load_model(made / "small")
    assert model.bundle.config.name == "small"
    assert sorted(record.alpha for record in records(made / "small")) == [0.05, 0.10]
    assert model.calibration is not None
    assert (model.calibration.record.alpha, model.calibration.record.n_healthy) == (0.05, N_CALIBRATION)
    assert len(model.notices) == 1
    assert verify(made / "small")["verified"]
    assert load_bundle(made / "work" / "model").model_id == model.bundle.metadata["derived_from"]


def test_subjects_either_train_or_calibrate(made: Path) -> None:
    bundle = load_bundle(made / "small")
    assert bundle.training_subjects().n_subjects == N_SUBJECTS - N_CALIBRATION
    calibrated = pd.read_parquet(made / "small" / "reference_scores.parquet")["content_hash"]
    assert calibrated.nunique() == N_CALIBRATION
    assert not bundle.training_subjects().content_hashes & set(calibrated)


def test_the_files_name_no_account_no_subject_and_no_scan(made: Path) -> None:
    files = [path for path in (made / "small").rglob("*") if path.is_file()]
    assert {path.relative_to(made / "small").parts[0] for path in files} == {
        "MODEL_CARD.md", "audit.jsonl", "calibrations", "config.yaml", "metadata.json", "reference.safetensors",
        "reference_scores.parquet", "training_subjects.json", "weights.safetensors",
    }  # fmt: skip
    for path in files:
        content = path.read_bytes()
        assert [word for word in (b"ada.lovelace", b"sub-0", b"sub-1", str(made).encode()) if word in content] == []
    assert (
        pd.read_parquet(made / "small" / "reference_scores.parquet")["scan_id"].str.fullmatch(r"healthy-\d+").all()
    )


def test_the_card_states_the_licence_and_the_limits(made: Path) -> None:
    card = (made / "small" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "- Only for tests." in card
    assert "Made from synthetic scans. Licence of this model: CC0." in card


def test_the_cohort_that_was_given_is_not_changed(made: Path, cohort: Path) -> None:
    assert set(pd.read_parquet(cohort / "manifest.parquet")["split"]) == {""}
    assert set(pd.read_parquet(made / "work" / "cohort" / "manifest.parquet")["split"]) == {"train", "calibration"}


def test_a_repeated_call_trains_nothing_and_replaces_the_shipped_model(
    made: Path, cohort: Path, tmp_path: Path
) -> None:
    work, output = Path(shutil.copytree(made / "work", tmp_path / "work", symlinks=True)), tmp_path / "small"
    (output / "calibrations").mkdir(parents=True)
    (output / "calibrations" / "old.json").write_text("{}", encoding="utf-8")
    again = make_shipped_model(made / "small.yaml", tmp_path, work, output, cohort=cohort)
    assert again["verified"]
    assert again["model_id"] == load_bundle(made / "small").model_id
    assert json.dumps(again)
    assert sum(again["megabytes_of_files"].values()) == pytest.approx(again["megabytes"])


def test_a_model_of_another_config_in_the_work_folder_is_refused(made: Path, cohort: Path, tmp_path: Path) -> None:
    other = write_settings(tmp_path)
    write_config(tmp_path / "atlas.yaml", smooth_mm=1.0)
    with pytest.raises(BundleError, match="holds a model of another config"):
        make_shipped_model(other, tmp_path, made / "work", tmp_path / "out", cohort=cohort)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_mb": 0.01}, r"the compact model has 0\.\d MB \(.*safetensors .*\); expected up to 0\.01"),
        (
            {"voxel_bits": 8, "max_score_difference": 1e-9},
            "compact storage changes the score reconstruction by up to",
        ),
    ],
)
def test_a_model_that_is_too_large_or_scores_differently_is_not_shipped(
    made: Path, cohort: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    settings = write_settings(tmp_path / "settings", **changes)
    work = Path(shutil.copytree(made / "work", tmp_path / "work", symlinks=True))
    with pytest.raises(BundleError, match=message):
        make_shipped_model(settings, tmp_path, work, tmp_path / "out", cohort=cohort)
    assert not (tmp_path / "out").exists()


def test_too_few_subjects_are_refused(cohort: Path, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, calibration_subjects=N_SUBJECTS)
    with pytest.raises(CohortError, match="found 40 healthy subjects; expected more than 40"):
        make_shipped_model(settings, tmp_path, tmp_path / "work", tmp_path / "out", cohort=cohort)
