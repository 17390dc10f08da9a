from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anomaly.cohort.planted_lesions import MR_LESION_KINDS
from anomaly.core.config import load_yaml
from anomaly.core.files import write_text
from anomaly.scoring.settings import ScoringSettings
from pipelines.benchmark.studies.common import load_benchmark_model
from pipelines.benchmark.studies.structure import structure_table, variants
from pipelines.train import train
from tests.pipelines.cohorts import write_config
from tests.pipelines.conftest import Trained


def test_the_variants_add_one_map_at_a_time() -> None:
    shipped = ScoringSettings(structure_maps={"structure": 0.5, "texture": 1.0}, background_percentile=90)
    found = dict(variants(shipped))
    assert [(list(settings.structure_maps), settings.background_percentile) for settings in found.values()] == [
        ([], 0), ([], 90), (["structure"], 90), (["texture"], 90), (["structure", "texture"], 90),
        (["structure", "texture"], 90),
    ]  # fmt: skip
    assert found["`standardise: normative`"].standardise == "normative"


@pytest.mark.slow
def test_every_variant_has_a_row_with_every_kind_of_lesion(
    trained: Trained, tmp_path: Path, lesion_shapes_folder: Path
) -> None:
    config = load_yaml(write_config(tmp_path / "atlas.yaml"))
    config["scoring"] |= {"structure_maps": {"structure": 0.5, "texture": 1.0}, "background_percentile": 90}
    write_text(tmp_path / "structure.yaml", yaml.safe_dump(config))
    train(tmp_path / "structure.yaml", trained.training, tmp_path / "model")
    model = load_benchmark_model(tmp_path / "model", trained.training)
    table = structure_table(model, lesion_shapes_folder, None).set_index("evidence")

    assert table.index[0] == "maps of the model alone"
    assert "as shipped" in table.index
    assert table.columns.tolist() == [f"{kind}, {what}" for kind in MR_LESION_KINDS for what in ("AP", "AUROC")]
    assert ((table >= 0) & (table <= 1)).all(axis=None)
    assert (table.loc["as shipped"] != table.loc["maps of the model alone"]).any()
