from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anomaly
from anomaly.core.errors import ConfigError
from anomaly.models import registry
from anomaly.models.registry import FAMILIES
from tests.models.factories import GRID


def test_listing_the_families_imports_no_deep_learning_library() -> None:
    code = (
        "import sys; from anomaly.models.registry import FAMILIES; assert FAMILIES; "
        "assert not {'torch', 'monai', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_family_is_refused_with_the_list_of_families() -> None:
    with pytest.raises(ConfigError, match=r"unknown family 'gan4'; valid: .*dae.*vae"):
        registry.settings_class("gan4")


def test_settings_without_a_family_are_refused() -> None:
    with pytest.raises(ConfigError, match="missing key 'family'"):
        registry.parse_settings({}, "model")


@pytest.mark.parametrize("family", ["atlas", "pca", "intensity"])
def test_a_voxelwise_baseline_refuses_slices(family: str) -> None:
    with pytest.raises(ConfigError, match=r"set view\.kind to 'volume'"):
        registry.parse_settings({"family": family, "view": {"kind": "slice"}}, "model")


def test_create_returns_an_untrained_detector_on_the_grid() -> None:
    detector = registry.create(registry.parse_settings({"family": "intensity"}, "model"), GRID)
    assert detector.family == "intensity"
    assert detector.grid is GRID


MORE_THAN_ONE_SHARED_MODULE = {"dae": 2}
"""Families that import several modules of components, and how many."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_imports_the_contract_and_one_shared_module(family: str) -> None:
    path = Path(anomaly.__file__).parent.parent / (
        FAMILIES[family].location.split(":")[0].replace(".", "/") + ".py"
    )
    imported = {
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("anomaly.models")
    }
    assert len(imported - {"anomaly.models.base"}) <= MORE_THAN_ONE_SHARED_MODULE.get(family, 1)
