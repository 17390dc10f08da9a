from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.core.files import read_json, write_json

SCANS = (("sub-1", "a"), ("sub-1", "b"), ("sub-2", "c"))


def test_subjects_are_recognised_after_a_round_trip(tmp_path: Path) -> None:
    made = TrainingSubjects.of(SCANS)
    made.write(tmp_path / "subjects.json")
    found = TrainingSubjects.read(tmp_path / "subjects.json")
    assert found == made
    assert [found.contains(name) for name in ("sub-1", "sub-2", "sub-3", "")] == [True, True, False, False]
    assert (found.n_subjects, found.content_hashes) == (2, {"a", "b", "c"})


def test_the_file_names_no_subject_and_two_models_share_no_hash(tmp_path: Path) -> None:
    first, second = TrainingSubjects.of(SCANS), TrainingSubjects.of(SCANS)
    first.write(tmp_path / "subjects.json")
    assert "sub-1" not in (tmp_path / "subjects.json").read_text(encoding="utf-8")
    assert not first.groups[0].hashes & second.groups[0].hashes
    assert len(bytes.fromhex(first.groups[0].salt)) == 16


def test_the_hash_is_scrypt_with_the_salt_of_the_model(tmp_path: Path) -> None:
    made = TrainingSubjects.of(SCANS)
    salt = bytes.fromhex(made.groups[0].salt)
    expected = hashlib.scrypt(b"sub-2", salt=salt, n=4096, r=8, p=1, dklen=16).hex()
    assert made.hash_subject("sub-2") == expected
    assert expected in made.groups[0].hashes


def test_the_subjects_of_all_members_are_recognised(tmp_path: Path) -> None:
    one, two = TrainingSubjects.of(SCANS), TrainingSubjects.of([("sub-3", "d")])
    merged = TrainingSubjects.merged([one, two, one])
    merged.write(tmp_path / "subjects.json")
    found = TrainingSubjects.read(tmp_path / "subjects.json")
    assert all(found.contains(name) for name in ("sub-1", "sub-2", "sub-3"))
    assert not found.contains("sub-4")
    assert (len(found.groups), found.n_subjects, found.content_hashes) == (2, 3, {"a", "b", "c", "d"})


@pytest.mark.parametrize("subject", ["sub-1", "sub-9"])
def test_hashes_of_an_earlier_version_without_salt_are_read(tmp_path: Path, subject: str) -> None:
    unsalted = hashlib.sha256(b"anomaly subject sub-1").hexdigest()[:32]
    write_json(tmp_path / "subjects.json", {"subjects": [unsalted], "content_hashes": ["a"]})
    found = TrainingSubjects.read(tmp_path / "subjects.json")
    assert found.contains(subject) == (subject == "sub-1")
    assert found.hash_subject("sub-1") == unsalted
    TrainingSubjects.merged([found, TrainingSubjects.of(SCANS)]).write(tmp_path / "merged.json")
    assert TrainingSubjects.read(tmp_path / "merged.json").contains("sub-2")
    assert read_json(tmp_path / "merged.json")["groups"][0] == {"salt": "", "subjects": [unsalted]}
