"""Every module has its tests at the mirrored path: ``anomaly/x/y.py`` in ``tests/x/test_y.py``, and vice versa."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

TESTS = REPOSITORY / "tests"

MODULES_WITHOUT_A_TEST_FILE: dict[str, str] = {
    "anomaly/core/progress.py": "a type and a callback that does nothing",
    "pipelines/validation/check_registry.py": "its keys are tested in test_cache_keys.py",
    "pipelines/validation/fit_and_score.py": "tested in test_labelled_dataset.py",
}
"""Path and reason."""

TEST_FILES_WITHOUT_A_MODULE: dict[str, str] = {
    "tests/contracts/test_detectors.py": "what holds for every family",
    "tests/models/test_configs.py": "the shipped configs",
    "tests/pipelines/test_ct.py": "several commands on CT scans",
    "tests/pipelines/test_earlier_version.py": "several commands on models and run folders of an earlier version",
    "tests/pipelines/test_killed_training.py": "the command train, killed",
    "tests/pipelines/test_retrieval.py": "similar healthy scans, from training to report",
    "tests/pipelines/validation/test_tasks.py": "the shipped tasks, and what a fault does to their result",
    "tests/robustness/test_fuzzing.py": "the readers, on damaged files",
    "tests/robustness/test_properties.py": "what holds for every input",
    "tests/robustness/test_full_disk.py": "every writer of files, where they cannot grow",
    "tests/robustness/test_interrupts.py": "the command score, interrupted",
    "tests/robustness/test_kill_matrix.py": "every command, killed at any file operation",
    "tests/robustness/test_tampering.py": "runs, models and cohorts that were changed",
    "tests/robustness/test_two_writers.py": "commands that write the same folder at the same time",
    "tests/sample_data/test_make.py": "sample_data/make.py, outside both packages",
    "tests/test_documentation.py": "the documents",
    "tests/test_mirror.py": "this rule",
    "tests/test_wheel.py": "setup.py",
}
"""Path and what it tests instead."""


def mirrored(module: Path) -> Path:
    """Return where the tests of a module belong; paths are relative to the repository."""
    inside = module.relative_to("anomaly") if module.parts[0] == "anomaly" else module
    return Path("tests") / inside.with_name(f"test_{inside.name}")


def modules() -> Iterator[str]:
    """Yield the modules that need tests; ``__init__`` and ``__main__`` hold no behaviour of their own."""
    for package in ("anomaly", "pipelines"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if not path.name.startswith("__"):
                yield path.relative_to(REPOSITORY).as_posix()


def test_every_module_has_a_test_file_at_the_mirrored_path() -> None:
    missing = {name for name in modules() if not (REPOSITORY / mirrored(Path(name))).is_file()}
    assert missing == set(MODULES_WITHOUT_A_TEST_FILE)


def test_every_test_file_has_a_module_at_the_mirrored_path() -> None:
    expected = {mirrored(Path(name)).as_posix() for name in modules()}
    present = {path.relative_to(REPOSITORY).as_posix() for path in TESTS.rglob("test_*.py")}
    assert present - expected == set(TEST_FILES_WITHOUT_A_MODULE)
