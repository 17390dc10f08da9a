"""Brain extraction by an external program."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import ConfigError
from anomaly.preprocessing.brain_mask import BrainMaskSettings, find_brain
from anomaly.preprocessing.extract_command import extract_with_command
from tests.preprocessing.phantoms import brain, head

THRESHOLD = """
import sys, nibabel as nib
image = nib.load(sys.argv[1])
mask = ((image.get_fdata() > 15) & (image.get_fdata() < 110)).astype("uint8")
nib.save(nib.Nifti1Image(mask, image.affine), sys.argv[2])
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "threshold.py"
    path.write_text(THRESHOLD)
    return f"{sys.executable} {path} {{input}} {{mask}}"


@pytest.mark.slow
def test_the_mask_of_the_program_is_the_brain_mask(program: str) -> None:
    volume, mask = brain()
    assert np.array_equal(extract_with_command(volume, program, 60), (volume.voxels > 15) & (volume.voxels < 110))
    assert mask.any()


@pytest.mark.slow
def test_auto_prefers_the_users_program_for_heads(program: str) -> None:
    volume, _ = head()
    settings = BrainMaskSettings(command=program)
    expected = (volume.voxels > 15) & (volume.voxels < 110)
    assert np.array_equal(find_brain(volume, settings)[0], expected)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bet {input}", "lacks {mask}"),
        ("no-such-program-anywhere {input} {mask}", "install it"),
        (f"{sys.executable} -c \"raise SystemExit('no licence')\" {{input}} {{mask}}", "no licence"),
        (f"{sys.executable} -c pass {{input}} {{mask}}", "wrote no file"),
    ],
)
def test_a_program_that_fails_is_an_error_with_the_cause(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extract_with_command(head()[0], command, 60)


def test_a_program_is_stopped_at_the_time_limit() -> None:
    command = f'{sys.executable} -c "import time; time.sleep(60)" {{input}} {{mask}}'
    with pytest.raises(ConfigError, match="longer than"):
        extract_with_command(head()[0], command, 0.2)
