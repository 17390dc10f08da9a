"""A trivial preprocessing chain and scans for it. Workers import this module to unpickle them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Volume
from anomaly.export.nifti import write_nifti
from anomaly.qc.checks import QcSettings
from tests.conftest import make_volume

LENIENT = QcSettings(min_extent_mm=10, min_slices=4, min_foreground_ml=1)


class FakeSettings(Settings):
    gain: float = 2.0
    seconds: float = 0.0


@dataclass(frozen=True)
class FakePrepared:
    voxels: FloatArray
    mask: MaskArray
    grid: Geometry
    template_from_scan: AffineArray
    numbers: dict[str, float]


@dataclass(frozen=True)
class FakeChain:
    """Multiply by a gain, and log each prepared scan; refuse, fail or crash for scans with such a name."""

    settings: FakeSettings
    log_folder: Path | None = None

    def apply(self, volume: Volume) -> FakePrepared:
        if self.log_folder is not None:
            with (self.log_folder / volume.scan_id).open("a") as stream:
                stream.write("x")
        time.sleep(self.settings.seconds)
        if "refuse" in volume.scan_id:
            raise ScanRefusedError("no_brain", "no brain", "a brain", "give a head")
        if "fail" in volume.scan_id:
            raise RuntimeError("the chain broke")
        if "memory" in volume.scan_id:
            raise MemoryError
        if "die" in volume.scan_id:
            os.kill(os.getpid(), signal.SIGKILL)
        voxels = np.asarray(volume.voxels * self.settings.gain, dtype=np.float32)
        return FakePrepared(voxels, voxels > 0, volume.geometry, np.diag([1.0, 1, 1, 1]), {"overlap": 0.9})


def put_scans(folder: Path, *names: str) -> Path:
    """Write one scan per name, ``sub-<name>_T1w.nii.gz``; equal letters before a ``-`` give equal content."""
    for name in names:
        seed = sum(map(ord, name.split("-", maxsplit=1)[0]))
        volume = make_volume(seed=seed)
        write_nifti(folder / f"sub-{name.replace('-', '')}_T1w.nii.gz", volume.voxels, volume.geometry)
    return folder


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die_once(task: tuple[Path, int]) -> int:
    """Kill the process at the first try of a task with an odd number."""
    folder, number = task
    mark = folder / str(number)
    if number % 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def threads(_: int) -> tuple[int, int]:
    import SimpleITK as sitk  # noqa: N813
    from threadpoolctl import threadpool_info

    return sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), max(
        (pool["num_threads"] for pool in threadpool_info()), default=1
    )
