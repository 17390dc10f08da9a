"""The healthy scans most like a scan, from training to the page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from anomaly.bundle.store import RETRIEVAL_INDEX, load_bundle
from anomaly.core.errors import BundleError
from anomaly.core.files import read_json
from pipelines.report import make_page
from pipelines.score import ScoreRequest, score
from pipelines.train import train
from tests.bundle.factory import to_format_1
from tests.pipelines.cohorts import healthy, make_cohort, write_config

TRAINED = range(15)


def config(folder: Path, **scoring: object) -> Path:
    """Write a config of an autoencoder that trains for two steps."""
    path = write_config(folder / "ae.yaml", "ae", view={"kind": "slice"}, channels=[8, 16], latent_size=4)
    values = yaml.safe_load(path.read_text()) | {"training": {"steps": 2, "validate_every": 2}}
    values["scoring"] |= scoring
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort") / "cohort", TRAINED)


@pytest.fixture(scope="module")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train(config(folder), cohort, folder / "model", device="cpu")
    return folder / "model"


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("new") / "cohort", range(700, 702))


@pytest.fixture(scope="module")
def run(model: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    score(ScoreRequest(model, (new,), output))
    make_page(output, "sub-700_T1w")
    return output


@pytest.mark.slow
def test_a_training_scan_finds_itself_after_loading(model: Path) -> None:
    bundle = load_bundle(model)
    index = bundle.scorer.index
    assert index is not None
    assert len(index) == bundle.metadata["data"]["n_train"] == 12
    assert index.slices["axial"].shape == (12, 16, 18)
    nearest = [bundle.scorer.score(*healthy(n)).neighbours[0] for n in TRAINED]
    assert sum(neighbour.similarity > 0.999 for neighbour in nearest) == 12  # the other three chose the checkpoint
    ages = {int(neighbour.label.split()[3]) for neighbour in nearest if neighbour.similarity > 0.999}
    assert ages < set(range(40, 55))


@pytest.mark.slow
def test_the_similarities_of_held_out_healthy_scans_are_in_the_metadata(model: Path, run: Path) -> None:
    known = read_json(model / "metadata.json")["retrieval"]
    assert (known["by"], known["n_scans"], len(known["held_out_nearest"])) == ("cosine", 12, 3)
    assert known["held_out_nearest"] == sorted(known["held_out_nearest"])
    assert all(similarity < 0.999 for similarity in known["held_out_nearest"])
    assert read_json(run / "run.json")["retrieval"] == known


@pytest.mark.slow
def test_a_result_names_its_neighbours_and_the_table_the_nearest_similarity(run: Path) -> None:
    neighbours = read_json(run / "sub-700_T1w" / "score.json")["neighbours"]
    assert [set(neighbour) for neighbour in neighbours] == [{"label", "similarity", "index"}] * 3
    similarities = [neighbour["similarity"] for neighbour in neighbours]
    assert similarities == sorted(similarities, reverse=True)
    row = pd.read_parquet(run / "scores.parquet").set_index("scan_id").loc["sub-700_T1w"]
    assert row["nearest_similarity"] == similarities[0]


def test_a_page_is_drawn_from_the_run_alone(run: Path) -> None:
    with np.load(run / "sub-700_T1w" / "sub-700_T1w_space-template_volumes.npz") as arrays:
        assert arrays["neighbours_axial"].shape == (3, 16, 18)
        assert arrays["neighbours_sagittal"].dtype == np.uint8
    html = (run / "sub-700_T1w" / "report.html").read_text()
    assert "The most similar healthy scans" in html
    assert "healthy scan" in html


def test_no_training_subject_is_named_in_the_model_or_in_a_run(model: Path, run: Path) -> None:
    names = [f"sub-{n:03d}".encode() for n in TRAINED]
    for path in (*model.rglob("*"), *run.rglob("*")):
        if path.is_file() and "training" not in path.parts:
            content = path.read_bytes()
            assert not [name for name in names if name in content], path


@pytest.mark.slow
def test_with_retrieval_turned_off_no_image_of_a_training_scan_is_saved(
    cohort: Path, new: Path, tmp_path: Path
) -> None:
    train(config(tmp_path, retrieval=0), cohort, tmp_path / "model", device="cpu")
    assert not (tmp_path / "model" / RETRIEVAL_INDEX).exists()
    assert load_bundle(tmp_path / "model").scorer.index is None
    score(ScoreRequest(tmp_path / "model", (new,), tmp_path / "run"))
    assert read_json(tmp_path / "run" / "sub-700_T1w" / "score.json")["neighbours"] == []
    assert "nearest_similarity" not in pd.read_parquet(tmp_path / "run" / "scores.parquet")
    assert make_page(tmp_path / "run", "sub-700_T1w").problem == ""
    assert "similar healthy scans" not in (tmp_path / "run" / "sub-700_T1w" / "report.html").read_text()
    assert "retrieval.safetensors` holds" not in (tmp_path / "model" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_model_of_an_earlier_version_without_an_index_still_scores(
    model: Path, new: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(model, tmp_path / "model"))
    (old / RETRIEVAL_INDEX).unlink()
    to_format_1(old, without=[RETRIEVAL_INDEX, "retrieval"])
    assert score(ScoreRequest(old, (new,), tmp_path / "run"))["scored"] == 2
    assert read_json(tmp_path / "run" / "run.json")["retrieval"] is None
    assert make_page(tmp_path / "run", "sub-700_T1w").problem == ""


def test_a_model_whose_index_was_altered_is_refused(model: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(model, tmp_path / "model"))
    content = bytearray((altered / RETRIEVAL_INDEX).read_bytes())
    content[-1] ^= 1
    (altered / RETRIEVAL_INDEX).write_bytes(content)
    with pytest.raises(BundleError, match=r"retrieval.safetensors: found .* altered or damaged"):
        load_bundle(altered)


def test_the_model_card_states_that_images_of_training_scans_are_inside(model: Path) -> None:
    assert "three grey slices and the age of each of 12 training" in (model / "MODEL_CARD.md").read_text()
