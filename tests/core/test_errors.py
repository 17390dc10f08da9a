from __future__ import annotations

import copy

from anomaly.core.errors import (
    AlphaTooSmallError,
    AnomalyError,
    BundleError,
    CohortError,
    ConfigError,
    InputError,
    LeakageError,
    PolicyError,
    ScanRefusedError,
    TrainingError,
    UncalibratedError,
    unknown_name,
)


def test_input_errors_and_policy_errors_are_different_branches() -> None:
    assert all(issubclass(error, InputError) for error in (ConfigError, CohortError, BundleError, TrainingError))
    assert all(issubclass(error, PolicyError) for error in (UncalibratedError, AlphaTooSmallError, LeakageError))
    assert all(issubclass(error, AnomalyError) for error in (InputError, PolicyError, ScanRefusedError))
    assert not issubclass(PolicyError, InputError)


def test_a_refusal_states_what_was_found_what_was_expected_and_what_to_do() -> None:
    error = ScanRefusedError("not_3d", "4 axes", "3 axes", "export one volume")

    assert error.code == "not_3d"
    assert error.reason == "found 4 axes; expected 3 axes"
    assert str(error) == "found 4 axes; expected 3 axes; export one volume"


def test_a_refusal_can_be_rebuilt_from_its_arguments_as_another_process_does() -> None:
    error = copy.copy(ScanRefusedError("unreadable", "a", "b", "c", is_transient=True))

    assert (error.code, error.found, error.expected, error.remedy) == ("unreadable", "a", "b", "c")
    assert error.is_transient
    assert not copy.copy(ScanRefusedError("not_3d", "4 axes", "3 axes", "export one volume")).is_transient


def test_the_message_for_an_unknown_name_lists_the_valid_ones_in_order() -> None:
    assert unknown_name("score", "maen", ["mean", "max"]) == "unknown score 'maen'; valid: max, mean"
