"""Extract the brain with an external program (HD-BET, SynthStrip, BET …)."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from anomaly.core.errors import ConfigError
from anomaly.core.volume import Geometry, MaskArray, Volume
from anomaly.preprocessing.grid import resample_mask

REQUIRED_PLACEHOLDERS = ("{input}", "{mask}")


def extract_with_command(volume: Volume, command: str, timeout_s: float) -> MaskArray:
    """Run an external program and return the brain mask ``(I, J, K)`` that it writes.

    Parameters
    ----------
    volume
        The head.
    command
        Command line with ``{input}`` (NIfTI file to read) and ``{mask}`` (NIfTI file to write); run without a
        shell.
    timeout_s
        Time limit, seconds.

    Raises
    ------
    ConfigError
        If the command lacks a placeholder, cannot be run, fails, or writes no mask. Such an error would affect
        every scan, so it stops the batch.
    """
    missing = [name for name in REQUIRED_PLACEHOLDERS if name not in command]
    if missing:
        raise ConfigError(f"brain_mask.command {command!r} lacks {' and '.join(missing)}; both are required")
    with TemporaryDirectory(prefix="anomaly-brain-") as folder:
        source, target = Path(folder) / "input.nii.gz", Path(folder) / "mask.nii.gz"
        nib.save(nib.Nifti1Image(volume.voxels, volume.geometry.affine), source)
        words = [
            word.replace("{input}", str(source)).replace("{mask}", str(target)) for word in shlex.split(command)
        ]
        _run(words, command, timeout_s)
        return _read_mask(target, volume.geometry, command)


def _run(words: list[str], command: str, timeout_s: float) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(
            f"brain_mask.command {command!r}: cannot run {words[0]!r}; install it or correct it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"brain_mask.command {command!r} ran longer than {timeout_s:.0f} s; raise "
                          "brain_mask.command_timeout_s or use another program") from error  # fmt: skip
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()[-400:] or "nothing"
        raise ConfigError(f"brain_mask.command {command!r} ended with code {done.returncode}: {output}; "
                          "expected code 0; run it by hand on one scan")  # fmt: skip


def _read_mask(path: Path, geometry: Geometry, command: str) -> MaskArray:
    if not path.exists():
        raise ConfigError(
            f"brain_mask.command {command!r} wrote no file at {{mask}}; check the order of its options"
        )
    image = cast("SpatialImage", nib.load(path))
    mask = np.asarray(image.dataobj) > 0.5
    found = Geometry((mask.shape[0], mask.shape[1], mask.shape[2]), image.affine)
    return mask if found.same_as(geometry) else resample_mask(mask, found, geometry)
