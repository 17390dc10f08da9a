"""The exception tree.

::

    AnomalyError                 everything this library raises on purpose
    ├── ScanRefusedError         one scan must not be scored; recorded, never stops a batch
    ├── InputError               bad input or configuration                          (exit code 4)
    │   ├── ConfigError          a YAML file or setting is wrong
    │   ├── CohortError          a cohort is missing, empty or does not fit the task
    │   ├── BundleError          a model bundle is missing, damaged or does not fit the task
    │   └── TrainingError        training cannot start or has gone wrong
    └── PolicyError              the request violates a policy                      (exit code 5)
        ├── UncalibratedError    a flag was asked of a model without a calibration
        ├── AlphaTooSmallError   too few healthy scans for the target FPR
        └── LeakageError         the same subject on both sides of a split

Every message says what was found, what was expected and what to do.
"""

from __future__ import annotations


class AnomalyError(Exception):
    """Base of every error this library raises on purpose."""


class ScanRefusedError(AnomalyError):
    """One scan must not be scored.

    Parameters
    ----------
    code
        Stable machine-readable reason, e.g. ``"not_3d"``; analysts filter on it.
    found, expected, remedy
        One clause each, without patient identifiers.
    """

    def __init__(self, code: str, found: str, expected: str, remedy: str) -> None:
        self.code = code
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(code, found, expected, remedy)

    @property
    def reason(self) -> str:
        """What was found and what was expected, as records and tables keep it beside the remedy."""
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


class PolicyError(AnomalyError):
    """The request violates a policy, e.g. calibration on training subjects."""


class UncalibratedError(PolicyError):
    """A flag was asked of a model that has no calibration."""


class AlphaTooSmallError(PolicyError):
    """Too few healthy scans for the target false-positive rate."""


class LeakageError(PolicyError):
    """The same subject or scan stands on both sides of a split."""


def unknown_name(kind: str, name: str, valid: list[str]) -> str:
    """Return the message for a name that is not known, with the list of those that are."""
    return f"unknown {kind} {name!r}; valid: {', '.join(sorted(valid))}"
