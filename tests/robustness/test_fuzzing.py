"""No mutant of a scan or table crashes a reader, hangs, or is silently read as something else.

``make robustness`` reads 10,000 mutants with other seeds; see docs/robustness.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Volume
from tests.robustness import fuzzing
from tests.robustness.fuzzing import Outcome, Target, judge, run_mutants
from tests.robustness.mutations import BYTE_MUTATIONS, Mutation, Rng
from tests.robustness.targets import TARGETS, no_explanation, write_image

MUTANTS = 500


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutants_are_read_as_they_were_refused_or_marked(target: Target) -> None:
    results = run_mutants(target, range(MUTANTS // len(TARGETS) + 1))
    wrong = [r for r in results if r.outcome in {Outcome.SILENT, Outcome.CRASHED, Outcome.HUNG}]
    assert not wrong, "\n".join(f"seed {r.seed}: {r.mutation}: {r.outcome} ({r.detail})" for r in wrong)
    assert any(r.outcome is Outcome.REFUSED for r in results)


def test_every_mutation_of_bytes_changes_the_file() -> None:
    content = bytes(range(1, 256))
    for mutate in BYTE_MUTATIONS:
        changed = [mutate(content, np.random.default_rng(seed))[0] != content for seed in range(20)]
        assert sum(changed) >= 19  # a random byte may be the one that was there


def test_a_scan_that_is_read_otherwise_counts_as_silent(tmp_path: Path) -> None:
    write_image(".nii.gz")(tmp_path)
    (scan,) = fuzzing.discover([tmp_path])
    volume = scan.read()
    other = Volume(volume.voxels + 1, volume.geometry, volume.scan_id)
    assert judge(tmp_path, [volume])[0] is Outcome.SAME
    assert judge(tmp_path, [other])[0] is Outcome.SILENT


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ScanRefusedError("code", "this", "that", "do it"), Outcome.REFUSED),
        (KeyError("a"), Outcome.CRASHED),
        (TimeoutError("still running"), Outcome.HUNG),
    ],
)
def test_errors_of_a_reader_are_told_apart(
    error: Exception, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(source: Path) -> list[Volume]:
        raise error

    monkeypatch.setattr(fuzzing, "_read_all", read)
    assert judge(Path(), [])[0] is outcome


def test_a_mutant_is_the_same_for_the_same_seed() -> None:
    seen: list[bytes] = []

    def remember(path: Path, rng: Rng) -> Mutation:
        path.write_bytes(path.read_bytes() + rng.bytes(4))
        seen.append(path.read_bytes())
        return Mutation("append")

    target = Target("scan", write_image(".nii.gz"), (remember,), no_explanation)
    run_mutants(target, range(2))
    run_mutants(target, range(2))
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]
