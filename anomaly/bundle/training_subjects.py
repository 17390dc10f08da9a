"""The subjects and scans that a model was trained on, by hash, so that later steps can recognise them.

A model may be passed on, and names of subjects are short. A fast hash without a salt can be reversed by trying all
names. Each model therefore has a salt of its own, and the hash is slow on purpose (scrypt, RFC 7914).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from anomaly.core.files import read_json, write_json

SALT_BYTES = 16
HASH_BYTES = 16
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**12, 8, 1  # about 10 ms and 4 MB per subject


@dataclass(frozen=True)
class SaltedSubjects:
    """Subjects hashed with one salt, in hex; the salt of an earlier version is ``""``, which means none."""

    salt: str
    hashes: frozenset[str]

    def hash_subject(self, subject: str) -> str:
        """Return the hash of the name of a subject, as 32 hex digits."""
        return _scrypt(subject, self.salt) if self.salt else _unsalted(subject)


@dataclass(frozen=True)
class TrainingSubjects:
    """The subjects and scans that a model has seen: in training, validation and adaptation.

    Parameters
    ----------
    groups
        Hashed subjects by salt: one group for a trained model, one more for an adapted one, one per member for an
        ensemble.
    content_hashes
        Content hashes of the scans.
    """

    groups: tuple[SaltedSubjects, ...]
    content_hashes: frozenset[str]

    @classmethod
    def of(cls, scans: Iterable[tuple[str, str]]) -> Self:
        """Hash the subjects of scans, given as ``(subject, content hash)``, with a new salt."""
        known = list(scans)
        salt = secrets.token_hex(SALT_BYTES)
        hashes = frozenset(_scrypt(subject, salt) for subject in {subject for subject, _ in known})
        return cls((SaltedSubjects(salt, hashes),), frozenset(content for _, content in known))

    @classmethod
    def merged(cls, members: Sequence[TrainingSubjects]) -> Self:
        """Return the subjects and scans of all members."""
        by_salt: dict[str, frozenset[str]] = {}
        for group in (group for member in members for group in member.groups):
            by_salt[group.salt] = by_salt.get(group.salt, frozenset()) | group.hashes
        contents: frozenset[str] = frozenset().union(*(member.content_hashes for member in members))
        return cls(tuple(SaltedSubjects(salt, hashes) for salt, hashes in by_salt.items()), contents)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``training_subjects.json``, also that of an earlier version, whose hashes have no salt."""
        values: dict[str, Any] = read_json(path)
        groups = values.get("groups", [{"salt": "", "subjects": values.get("subjects", [])}])
        return cls(
            tuple(SaltedSubjects(group["salt"], frozenset(group["subjects"])) for group in groups),
            frozenset(values["content_hashes"]),
        )

    def write(self, path: Path) -> None:
        """Write ``training_subjects.json``."""
        groups = [{"salt": group.salt, "subjects": sorted(group.hashes)} for group in self.groups]
        write_json(path, {"version": 2, "groups": groups, "content_hashes": sorted(self.content_hashes)})

    @property
    def n_subjects(self) -> int:
        """Number of subjects; one who is in several groups counts several times."""
        return sum(len(group.hashes) for group in self.groups)

    def contains(self, subject: str) -> bool:
        """Return whether a subject was seen in training or validation."""
        return any(group.hash_subject(subject) in group.hashes for group in self.groups)

    def hash_subject(self, subject: str) -> str:
        """Return the hash by which tables of this model name a subject."""
        return self.groups[0].hash_subject(subject)


@lru_cache(maxsize=2**14)
def _scrypt(subject: str, salt: str) -> str:
    return hashlib.scrypt(
        subject.encode(), salt=bytes.fromhex(salt), n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, dklen=HASH_BYTES
    ).hex()


def _unsalted(subject: str) -> str:
    """Return the hash of earlier versions."""
    return hashlib.sha256(f"anomaly subject {subject}".encode()).hexdigest()[:32]
