from __future__ import annotations

import pytest

from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import small_dataset


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return small_dataset()
