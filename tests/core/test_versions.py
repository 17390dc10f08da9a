import numpy as np

from anomaly.core.versions import versions


def test_a_library_that_is_missing_is_named_as_such() -> None:
    assert versions(["numpy", "no-such-library"]) == {"numpy": np.__version__, "no-such-library": "not installed"}
