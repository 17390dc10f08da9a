from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.bundle.arrays import VoxelBits
from anomaly.bundle.compact import compact_bundle
from anomaly.bundle.store import TrainedBundle, load_bundle, save_bundle
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.core.errors import BundleError
from anomaly.core.files import read_json
from tests.bundle.factory import FACTS, TRAINING_SCANS, config_of, trained_scorer
from tests.bundle.test_card import facts
from tests.models.factories import healthy_scan

CARD_FACTS = facts()
SEEN = TrainingSubjects.of(TRAINING_SCANS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TrainedBundle:
    folder, config = tmp_path_factory.mktemp("compact") / "model", config_of()
    save_bundle(folder, config, trained_scorer(config, folder), SEEN, CARD_FACTS | FACTS)
    return load_bundle(folder)


@pytest.mark.parametrize(("voxel_bits", "rtol"), [(16, 1e-3), (8, 2e-2)])
def test_a_compact_model_scores_nearly_as_its_source(
    bundle: TrainedBundle, tmp_path: Path, voxel_bits: VoxelBits, rtol: float
) -> None:
    compact_bundle(bundle.folder, tmp_path / "compact", voxel_bits=voxel_bits)
    compact, scan = load_bundle(tmp_path / "compact"), healthy_scan(99)
    expected, found = bundle.scorer.score(*scan), compact.scorer.score(*scan)
    assert found.scores["reconstruction"] != expected.scores["reconstruction"]
    for name, value in expected.scores.items():
        assert found.scores[name] == pytest.approx(value, rel=rtol)


def test_a_compact_model_is_smaller_and_another_model(bundle: TrainedBundle, tmp_path: Path) -> None:
    model_id = compact_bundle(bundle.folder, tmp_path / "compact", {"name": "shipped"})
    compact = load_bundle(tmp_path / "compact")
    for name in ("weights.safetensors", "reference.safetensors"):
        assert (compact.folder / name).stat().st_size < 0.6 * (bundle.folder / name).stat().st_size
    assert compact.model_id == model_id != bundle.model_id
    assert compact.metadata["derived_from"] == bundle.model_id
    assert compact.metadata["held_out_scores"] == bundle.metadata["held_out_scores"]
    assert compact.config == bundle.config.model_copy(update={"name": "shipped"})
    assert compact.training_subjects() == bundle.training_subjects()
    card = (compact.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card.startswith("# shipped\n")
    assert f"| Model id | `{model_id}` |" in card
    assert f"The arrays are those of the model `{bundle.model_id}`, stored in fewer bits." in card


def test_a_compact_model_that_was_loaded_and_saved_as_it_is_scores_exactly_the_same(
    bundle: TrainedBundle, tmp_path: Path
) -> None:
    compact_bundle(bundle.folder, tmp_path / "compact")
    compact = load_bundle(tmp_path / "compact")
    save_bundle(tmp_path / "saved", compact.config, compact.scorer, SEEN, FACTS)
    saved, scan = load_bundle(tmp_path / "saved"), healthy_scan(99)
    np.testing.assert_array_equal(saved.scorer.score(*scan).evidence, compact.scorer.score(*scan).evidence)
    assert saved.scorer.score(*scan).scores == compact.scorer.score(*scan).scores


def test_the_files_of_a_compact_model_are_hashed(bundle: TrainedBundle, tmp_path: Path) -> None:
    compact_bundle(bundle.folder, tmp_path / "compact")
    file = tmp_path / "compact" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"0")
    with pytest.raises(BundleError, match="altered or damaged"):
        load_bundle(tmp_path / "compact")


def test_a_model_is_not_overwritten_by_a_compact_one(bundle: TrainedBundle) -> None:
    before = read_json(bundle.folder / "metadata.json")
    with pytest.raises(BundleError, match="already holds a model"):
        compact_bundle(bundle.folder, bundle.folder)
    assert read_json(bundle.folder / "metadata.json") == before


def test_principal_components_are_compacted(tmp_path: Path) -> None:
    config = config_of("pca", model={"family": "pca", "components": 4})
    source = tmp_path / "pca"
    save_bundle(source, config, trained_scorer(config, source), SEEN, CARD_FACTS | {"family": "pca"})
    compact_bundle(source, tmp_path / "compact", {"name": "pca"})
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (tmp_path / "compact", source)]
    assert sizes[0] < 0.4 * sizes[1]
    one, other = (
        load_bundle(folder).scorer.score(*healthy_scan(99)).scores for folder in (source, tmp_path / "compact")
    )
    assert other["reconstruction"] == pytest.approx(one["reconstruction"], rel=3e-2)
