"""What must hold for every registered family."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anomaly.bundle.arrays import read_arrays, write_compact_arrays
from anomaly.core.errors import ConfigError, TrainingError
from anomaly.core.volume import Geometry
from anomaly.models import registry
from anomaly.models.base import Detector, Evidence
from anomaly.models.generation import Embedder, Reconstructor
from anomaly.training.fit import fit
from anomaly.training.run import FitReport, FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, MemoryCohort, healthy_cohort, healthy_scan, images_of, planted_scan

pytestmark = pytest.mark.slow  # trains every family

SMALL: dict[str, dict[str, Any]] = {
    "dae": {
        "view": {"kind": "slice", "neighbours": 1},
        "features": (8, 8, 8, 8, 16, 8),
        "space_to_depth": 1,
        "atlas": False,
        "change_logit_weight": 1.0,
    },
    "restoration": {
        "view": {"kind": "slice", "neighbours": 1},
        "features": (8, 8, 8, 8, 16, 8),
        "space_to_depth": 1,
        "atlas": False,
        "steps": 3,
    },
    "ae": {"channels": (8, 16), "latent_size": 8},
    "vae": {"channels": (8, 16), "latent_size": 8, "kl_gradient": True, "restoration_steps": 2},
    "cvae": {"channels": (8, 16), "latent_size": 8, "context_encoding": 0.2},
    "hvae": {"channels": (8, 16), "latents": (8, 2, 1)},
    "stacked_ae": {"channels": (8, 16), "latent_size": 8, "fine_tuning": 0.8},
    "conv_lstm_ae": {"channels": (8, 16), "latent_size": 8, "hidden_size": 8},
    "diffusion": {
        "channels": (8, 16),
        "space_to_depth": 1,
        "levels": (0.3, 0.6),
        "n_function_evaluations": 4,
        "masked": "patch",
        "context": True,
        "context_size": 4,
    },
    "latent_diffusion": {
        "channels": (8, 16),
        "space_to_depth": 1,
        "latent_channels": 4,
        "denoiser_channels": (8, 16),
        "patch_size": 2,
        "ddim_steps": 2,
    },
    "flow": {"view": {"kind": "slice"}, "space_to_depth": 2, "hidden": 16, "couplings": 4},
    "f_anogan": {"channels": (8, 16), "latent_size": 8, "critic_steps": 1, "encoder_share": 0.5},
    "vaegan": {"channels": (8, 16), "latent_size": 8, "critic_steps": 1},
    "atlas": {},
    "pca": {"components": 4},
    "intensity": {},
}
"""Every family, as small as it gets. A family that is registered and not listed here fails the suite."""

TRAINING = TrainingSettings(steps=40, batch_size=8, learning_rate=5e-3, warmup=2, validate_every=20, num_workers=0)


def new(family: str) -> Detector:
    return registry.create(registry.parse_settings({"family": family, **SMALL[family]}, "test"), GRID)


def fitted(family: str, folder: Path) -> tuple[Detector, FitReport]:
    detector = new(family)
    return detector, fit(detector, healthy_cohort(), [planted_scan()], FitRun(folder, TRAINING, device="cpu"))


@pytest.fixture(scope="module", params=sorted(registry.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(family: str, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return fitted(family, tmp_path_factory.mktemp(family))[0]


@torch.inference_mode()
def evidence_of(detector: Detector, seed: int = 200, planted: bool = False) -> Evidence:
    scan = planted_scan(seed)
    voxels, mask = (scan.voxels, scan.mask) if planted else healthy_scan(seed)
    return detector.eval().evidence(*images_of(voxels, mask, detector.view))


def everything(evidence: Evidence) -> dict[str, torch.Tensor]:
    return {**evidence.maps, **evidence.terms, "reconstruction": evidence.reconstruction}


def test_every_family_is_in_this_suite() -> None:
    assert set(SMALL) == set(registry.FAMILIES)


def test_a_family_is_registered_under_its_own_name(family: str) -> None:
    found = registry.detector_class(family)
    assert found.family == family
    assert found.Settings.model_fields["family"].default == family
    assert registry.FAMILIES[family].description


def test_fitting_changes_what_is_learnt(family: str, trained: Detector) -> None:
    before, after = new(family).state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_evidence_has_the_documented_shapes_and_is_finite(trained: Detector) -> None:
    images, mask = images_of(*healthy_scan(200), trained.view)
    evidence = evidence_of(trained)
    assert "residual" in evidence.maps
    for tensor in (*evidence.maps.values(), evidence.reconstruction):
        assert tensor.shape == mask.shape
    assert all(term.shape == (len(images),) for term in evidence.terms.values())
    assert all(
        tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in everything(evidence).values()
    )


def test_evidence_outside_the_mask_is_zero(trained: Detector) -> None:
    _, mask = images_of(*healthy_scan(200), trained.view)
    evidence = evidence_of(trained)
    assert all((evidence_map[~mask] == 0).all() for evidence_map in evidence.maps.values())


def test_an_empty_image_gives_finite_evidence(trained: Detector) -> None:
    images, mask = images_of(*healthy_scan(200), trained.view)
    with torch.inference_mode():
        evidence = trained.evidence(torch.zeros_like(images), torch.zeros_like(mask))
    assert all(tensor.isfinite().all() for tensor in everything(evidence).values())


def test_different_scans_give_different_evidence(trained: Detector) -> None:
    assert not torch.equal(evidence_of(trained, 200).maps["residual"], evidence_of(trained, 201).maps["residual"])


def test_evidence_is_the_same_twice(trained: Detector) -> None:
    first, second = everything(evidence_of(trained)), everything(evidence_of(trained))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("seed", [200, 201, 202])
def test_a_planted_lesion_scores_above_the_same_scan_without_it(trained: Detector, seed: int) -> None:
    _, inside = images_of(planted_scan(seed).voxels, planted_scan(seed).lesion, trained.view)
    lesion = images_of(planted_scan(seed).lesion.astype(np.float32), planted_scan(seed).mask, trained.view)[0]
    middle = lesion.shape[1] // 2
    where = lesion[:, middle : middle + 1] > 0
    with_lesion, without = evidence_of(trained, seed, planted=True), evidence_of(trained, seed)
    assert with_lesion.maps["residual"][where].abs().mean() > without.maps["residual"][where].abs().mean()
    assert with_lesion.maps["residual"][where].mean() < without.maps["residual"][where].mean()  # it is dark
    assert inside.any()


def test_evidence_does_not_depend_on_what_else_is_in_the_batch(trained: Detector) -> None:
    images, mask = images_of(*healthy_scan(200), trained.view)
    others, other_masks = images_of(*healthy_scan(201), trained.view)
    with torch.inference_mode():
        alone = everything(trained.evidence(images[:1], mask[:1]))
        together = everything(trained.evidence(torch.cat([images, others]), torch.cat([mask, other_masks])))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name][:1], tensor, rtol=1e-4, atol=1e-5)


def test_a_saved_state_gives_bit_identical_evidence(trained: Detector, family: str, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in trained.state_dict().items()}, tmp_path / "weights")
    loaded = new(family)
    loaded.load_state_dict(load_file(tmp_path / "weights"))
    first, second = everything(evidence_of(trained)), everything(evidence_of(loaded))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_compact_state_gives_nearly_the_same_evidence(trained: Detector, family: str, tmp_path: Path) -> None:
    state = {name: value.numpy() for name, value in trained.state_dict().items()}
    write_compact_arrays(tmp_path / "weights", state, GRID.shape)
    loaded = new(family)
    loaded.load_state_dict(
        {name: torch.from_numpy(values) for name, values in read_arrays(tmp_path / "weights").items()}
    )
    first, second = everything(evidence_of(trained)), everything(evidence_of(loaded))
    for name, tensor in first.items():
        assert (second[name] - tensor).square().mean().sqrt() < 0.02 * tensor.square().mean().sqrt() + 1e-6


def test_a_family_that_reconstructs_shows_what_its_evidence_shows(trained: Detector) -> None:
    images, mask = images_of(*healthy_scan(200), trained.view)
    assert isinstance(trained, Reconstructor)
    with torch.inference_mode():
        shown = torch.where(mask, trained.reconstruct(images, mask), 0.0)
    torch.testing.assert_close(shown, evidence_of(trained).reconstruction)


def test_a_detector_can_be_sent_to_another_process(trained: Detector) -> None:
    sent = pickle.loads(pickle.dumps(trained))  # noqa: S301 - as training on several devices does
    first, second = everything(evidence_of(trained)), everything(evidence_of(sent))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_family_that_embeds_gives_each_image_a_code_whatever_else_is_in_the_batch(trained: Detector) -> None:
    if not isinstance(trained, Embedder):
        return
    images, mask = images_of(*healthy_scan(200), trained.view)
    with torch.inference_mode():
        codes, alone = trained.embed(images, mask), trained.embed(images[:1], mask[:1])
    assert codes.ndim == 2
    assert len(codes) == len(images)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes[:1], alone, rtol=1e-4, atol=1e-5)
    assert codes.std(dim=0).max() > 0 or len(images) == 1


def test_an_embedding_that_comes_with_the_evidence_is_the_embedding(trained: Detector) -> None:
    images, mask = images_of(*healthy_scan(200), trained.view)
    with torch.inference_mode():
        found = trained.eval().evidence(images, mask).embedding
        assert (found is not None) == isinstance(trained, Embedder)
        if isinstance(trained, Embedder):
            assert found is not None
            assert torch.equal(found, trained.embed(images, mask))


def test_fitting_leaves_the_global_random_state_alone(family: str, tmp_path: Path) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    detector = new(family)
    training = TRAINING.model_copy(update={"steps": 1})
    fit(detector, healthy_cohort(), [], FitRun(tmp_path, training, device="cpu"))
    assert torch.equal(torch_before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def test_refitting_with_the_same_seed_gives_equal_results(family: str, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"steps": 5})
    states = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        detector = new(family)
        fit(detector, healthy_cohort(), [], FitRun(folder, training, device="cpu"))
        states.append(detector.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_report_says_what_was_done(family: str, tmp_path: Path) -> None:
    detector = new(family)
    reported: list[tuple[int, int, str]] = []
    run = FitRun(tmp_path, TRAINING.model_copy(update={"steps": 2}), device="cpu", progress=collect(reported))
    report = fit(detector, healthy_cohort(), [planted_scan()], run)
    assert report.n_scans == 10
    assert report.n_parameters == detector.n_parameters()
    assert not detector.training
    if detector.n_parameters():
        assert report.steps == 2
        assert 0 < report.validation["planted_ap"] <= 1
        assert reported[-1][:2] == (2, 2)


def collect(reported: list[tuple[int, int, str]]) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, message: str) -> None:
        reported.append((done, total, message))

    return progress


def test_unknown_settings_are_refused_with_the_valid_ones(family: str) -> None:
    with pytest.raises(ConfigError, match=r"'colour'.*valid keys.*view"):
        registry.parse_settings({"family": family, "colour": "red"}, "model")


def test_an_empty_cohort_is_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected at least"):
        fit(new(family), MemoryCohort([]), [], FitRun(tmp_path, TRAINING, device="cpu"))


def test_a_cohort_on_another_grid_is_refused(family: str, tmp_path: Path) -> None:
    other = Geometry((10, 10, 10), np.eye(4))
    with pytest.raises(TrainingError, match="grid"):
        fit(new(family), healthy_cohort(grid=other), [], FitRun(tmp_path, TRAINING, device="cpu"))
