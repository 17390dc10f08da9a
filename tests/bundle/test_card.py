from __future__ import annotations

from typing import Any

from anomaly import RESEARCH_USE_ONLY
from anomaly.bundle.card import ensemble_card, model_card
from anomaly.bundle.ensemble import EnsembleConfig
from anomaly.preprocessing.chain import ChainSettings
from anomaly.scoring.ensemble import MergeSettings
from anomaly.scoring.settings import EvidenceSettings
from tests.bundle.factory import config_of

AGES = {"age_mean": 47.9, "age_min": 20.2, "age_max": 81.9}


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "data": {"n_train": 88, "n_train_subjects": 80, "n_validation": 12, "n_validation_subjects": 11, **AGES},
        "training": {
            "steps": 400, "seconds": 61.4, "device": "cpu", "seed": 3, "n_parameters": 1234567,
            "validation": {"average_precision": 0.61234}, "notes": ["stopped early"],
        },
        "retrieval": None, "created_at": "2026-01-02", "user_name": "ada", "intended_use": "Research.",
    } | changes  # fmt: skip


def ensemble_facts(**data: Any) -> dict[str, Any]:
    return facts(data={"n_scans": 100, "n_subjects": 91, "age_min": 20.2, "age_max": 81.9} | data)


def ensemble_config(**weights: float) -> EnsembleConfig:
    return EnsembleConfig(
        name="both",
        preprocessing=ChainSettings(),
        scoring=EvidenceSettings(scan_score="ensemble"),
        members=("dae", "pca", "vae"),
        merge=MergeSettings(weights=weights),
    )


def test_the_card_states_identity_data_training_and_limits() -> None:
    card = model_card(config_of(), "0123456789ab", facts())
    assert card.startswith("# small\n")
    assert RESEARCH_USE_ONLY in card
    assert "| Model id | `0123456789ab` |" in card
    assert "| Trainable parameters | 1,234,567 |" in card
    assert "| Created | 2026-01-02 by ada |" in card
    assert "88 healthy scans of 80 subjects; 12 scans of 11 other healthy subjects" in card
    assert "Age 48 years on average (20 to 82)." in card
    assert "400 steps in 61 s on cpu, seed 3." in card
    assert "- average_precision: 0.6123" in card
    assert "- stopped early" in card
    assert "does not name a finding" in card


def test_the_card_says_with_whom_a_scan_is_compared_if_that_depends_on_age() -> None:
    config = config_of(scoring={"standardise": "normative"})
    known = {"age_min": 20.0, "age_max": 81.0, "sd_growth_per_decade": 0.05}

    assert "of the age and sex of its subject, 20 to 81 years" in model_card(config, "id", facts(normative=known))
    assert "Too few training scans are of known age" in model_card(config, "id", facts(normative=None))
    assert "age and sex of its subject" not in model_card(config_of(), "id", facts(normative=None))


def test_the_card_names_the_maps_of_the_evidence() -> None:
    config = config_of(scoring={"maps": {"residual": 1.0, "kl": 0.5, "pca": 2.0}})
    assert "the signed maps `residual`, `kl` and `pca`" in model_card(config, "id", facts())


def test_the_card_says_so_when_ages_are_unknown() -> None:
    unknown = facts(data=facts()["data"] | {"age_mean": None, "age_min": None, "age_max": None})
    assert "Their ages are not known." in model_card(config_of(), "id", unknown)


def test_the_card_names_the_number_of_devices_only_if_there_are_several() -> None:
    several = facts(training=facts()["training"] | {"devices": 4})
    assert "on cpu (4 devices), seed 3" in model_card(config_of(), "id", several)
    assert "devices" not in model_card(config_of(), "id", facts())


def test_the_card_warns_of_slices_of_training_scans_in_the_model() -> None:
    card = model_card(config_of(), "id", facts(retrieval={"n_scans": 88}))
    assert "three grey slices and the age of each of 88 training scans" in card
    assert "retrieval.safetensors" not in model_card(config_of(), "id", facts())


def test_the_card_of_an_ensemble_names_its_members_and_weights() -> None:
    card = ensemble_card(ensemble_config(pca=2.0), "0123456789ab", ensemble_facts())
    assert "| Family | ensemble of `dae`, `pca` and `vae` |" in card
    assert "100 healthy scans of 91 subjects, in all members" in card
    assert "Age 20 to 82 years." in card
    assert "(student), merged (fisher)" in card
    assert "(weights: pca 2; 1 for others)" in card
    assert "reconstruction is that of `dae`" in card


def test_the_card_of_an_ensemble_with_equal_weights_names_none() -> None:
    assert "weights:" not in ensemble_card(ensemble_config(), "id", ensemble_facts())


def test_the_card_of_a_shipped_model_states_its_limits_its_source_and_its_licence() -> None:
    shipped = {"attribution": "Made from the IXI data set.", "licence": "CC BY-SA 3.0"}
    card = model_card(
        config_of(), "id", facts(limits=["Adults only."], shipped=shipped, storage={"arrays_of": "abc"})
    )
    limits, source = card.split("## Limits")[1].split("## Source and licence")
    assert "- Adults only.\n" in limits
    assert "Made from the IXI data set. Licence of this model: CC BY-SA 3.0." in source
    assert "The arrays are those of the model `abc`, stored in fewer bits." in card
    assert "## Source and licence" not in model_card(config_of(), "id", facts())
