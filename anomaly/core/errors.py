"""All exceptions of this library.

::

    AnomalyError                 base class of all of them
    ├── ScanRefusedError         one scan must not be scored; it is recorded and the batch goes on
    ├── InputError               bad input or configuration                          (exit code 4)
    │   ├── ConfigError          a YAML file or setting is wrong
    │   ├── CohortError          a cohort is missing, empty or does not fit the task
    │   ├── BundleError          a model bundle is missing, damaged or does not fit the task
    │   ├── TrainingError        training cannot start or has gone wrong
    │   ├── DamagedFileError     a file that this library wrote is empty, cut or altered
    │   └── OutputError          a file or folder cannot be written, or another process writes there
    └── PolicyError              the request violates a policy                      (exit code 5)
        ├── UncalibratedError    the request needs a calibration and the model has none
        ├── CommandRefusedError  a model would run a program, and the user did not allow it
        ├── AlphaTooSmallError   too few healthy scans for the target FPR
        └── LeakageError         a subject is in two splits

Every message states what was found, what was expected and what to do.
"""

from __future__ import annotations


class AnomalyError(Exception):
    """Base class of the exceptions of this library."""


class ScanRefusedError(AnomalyError):
    """One scan must not be scored.

    Parameters
    ----------
    code
        Stable machine-readable reason, e.g. ``"not_3d"``, to filter by.
    found, expected, remedy
        One clause each, without patient identifiers.
    is_transient
        Whether the disk, the network or permissions are the reason, and not the scan: it may be readable later.
    """

    def __init__(self, code: str, found: str, expected: str, remedy: str, is_transient: bool = False) -> None:
        self.code = code
        self.found = found
        self.expected = expected
        self.remedy = remedy
        self.is_transient = is_transient
        super().__init__(code, found, expected, remedy, is_transient)

    @property
    def reason(self) -> str:
        """What was found and what was expected, for records and tables that list the remedy separately."""
        return f"found {self.found}; expected {self.expected}"

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


class InputError(AnomalyError):
    """Bad input or configuration."""


class ConfigError(InputError):
    """A configuration file or setting is wrong."""


class CohortError(InputError):
    """A cohort is missing, empty or does not fit the task."""


class BundleError(InputError):
    """A model bundle is missing, damaged or does not fit the task."""


class TrainingError(InputError):
    """Training cannot start, or has gone wrong."""


class DamagedFileError(InputError):
    """A file that this library wrote is empty, cut or altered."""


class OutputError(InputError):
    """A file or folder cannot be written: the disk is full, writing is not permitted, or another process writes."""


class PolicyError(AnomalyError):
    """The request violates a policy, e.g. calibration on training subjects."""


class UncalibratedError(PolicyError):
    """The request needs a calibration, and the model has none that fits."""


class CommandRefusedError(PolicyError):
    """A model would run a program on this machine, and the user did not allow it."""


class AlphaTooSmallError(PolicyError):
    """Too few healthy scans for the target false-positive rate."""


class LeakageError(PolicyError):
    """The same subject or scan is in two splits, for example training and calibration."""


def unknown_name(kind: str, name: str, valid: list[str]) -> str:
    """Return an error message for an unknown name, with a list of the valid ones."""
    return f"unknown {kind} {name!r}; valid: {', '.join(sorted(valid))}"
