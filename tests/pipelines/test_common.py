from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly.core.errors import (
    AnomalyError,
    BundleError,
    ConfigError,
    InputError,
    LeakageError,
    PolicyError,
    ScanRefusedError,
)
from pipelines.common import SAMPLE, Exit, audit, cores, exit_code, find_config, shipped_configs


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no scans"), Exit.BAD_INPUT),
        (BundleError("no model"), Exit.BAD_INPUT),
        (PolicyError("not allowed"), Exit.POLICY),
        (LeakageError("seen in training"), Exit.POLICY),
        (ScanRefusedError("not_3d", "two axes", "three axes", "export the volume"), Exit.SCANS_REFUSED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: AnomalyError, code: Exit) -> None:
    assert exit_code(error) == code


def test_the_numbers_of_exit_codes_do_not_change() -> None:
    assert [(code.name, code.value) for code in Exit] == [
        ("DONE", 0),
        ("CRASH", 1),
        ("USAGE", 2),
        ("SCANS_REFUSED", 3),
        ("BAD_INPUT", 4),
        ("POLICY", 5),
        ("FLAGGED", 6),
        ("THRESHOLD_MISSED", 7),
    ]


def test_shipped_configs_are_listed_by_name() -> None:
    configs = shipped_configs("preprocessing")

    assert configs["t1w"].name == "t1w.yaml"
    assert {"ct", "t1w-4mm"} <= set(configs)
    assert shipped_configs("no such kind") == {}


def test_a_config_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: dae\n", encoding="utf-8")

    assert find_config("dae", "models") == shipped_configs("models")["dae"]
    assert find_config(path, "models") == find_config(str(path), "models") == path


def test_an_unknown_name_is_an_error_that_lists_the_shipped_configs() -> None:
    with pytest.raises(ConfigError, match=r"unknown preprocessing config 't2x'; valid: .*t1w.*, or a path"):
        find_config("t2x", "preprocessing")


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*missing\.yaml"):
        find_config(tmp_path / "missing.yaml", "models")


def test_the_audit_log_gets_one_line_per_command(tmp_path: Path) -> None:
    audit(tmp_path / "run", "score", scans=3)
    audit(tmp_path / "run", "report")
    first, second = map(json.loads, (tmp_path / "run" / "audit.jsonl").read_text(encoding="utf-8").splitlines())

    assert (first["verb"], first["scans"], second["verb"]) == ("score", 3, "report")
    assert {"at", "user_name", "command"} <= set(first)


def test_there_is_at_least_one_core_and_a_folder_of_sample_scans() -> None:
    assert cores() >= 1
    assert (SAMPLE / "manifest.csv").is_file()
