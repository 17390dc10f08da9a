"""The subjects of the sample cohort: numbers, groups, splits and planted lesions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sample_data.recipe.lesions import Lesion
from sample_data.recipe.subjects import Person, draw_person

Modality = Literal["T1w", "CT"]
Split = Literal["train", "calibration", "test"]

DATATYPE = {"T1w": ("mr", "anat", "T1w"), "CT": ("ct", "ct", "ct")}
"""Modality to the folder of its data set, the BIDS folder below the subject, and the BIDS suffix."""

DICOM_MODALITY: dict[str, Literal["MR", "CT"]] = {"T1w": "MR", "CT": "CT"}

MR_LESIONS = {
    53: Lesion("left frontoparietal", (-36.0, -12.0, 34.0), 40.0, "signal_factor", 0.45),
    54: Lesion("right temporal", (50.0, -24.0, -10.0), 18.0, "signal_factor", 0.5),
    55: Lesion("right cerebellum", (26.0, -66.0, -38.0), 12.0, "signal_factor", 0.4),
    56: Lesion("left occipital", (-24.0, -84.0, 8.0), 6.0, "signal_factor", 0.4),
    57: Lesion("right frontal", (30.0, 36.0, 18.0), 25.0, "signal_factor", 1.4),
    58: Lesion("left parietal", (-30.0, -56.0, 44.0), 12.0, "signal_factor", 1.5),
}
CT_LESIONS = {
    67: Lesion("right basal ganglia bleed", (28.0, -2.0, 6.0), 25.0, "hounsfield_value", 70.0),
    68: Lesion("left middle cerebral artery infarct", (-44.0, -18.0, 20.0), 60.0, "hounsfield_shift", -12.0),
    112: Lesion("right epidural bleed", (98.0, -20.0, 30.0), 30.0, "hounsfield_value", 65.0, "extra_axial"),
    113: Lesion("left subdural bleed", (-66.0, -20.0, 40.0), 30.0, "hounsfield_value", 60.0, "subdural"),
    114: Lesion("left occipital bleed", (-24.0, -76.0, 8.0), 6.0, "hounsfield_value", 72.0),
    115: Lesion("right frontal mass", (30.0, 34.0, 22.0), 25.0, "hounsfield_value", 52.0),
}

HEAD_SUBJECT = 71
REFUSED_SUBJECT = 81
DICOM_SUBJECTS = {"T1w": 47, "CT": 62}
"""The subjects whose scan is also written as a DICOM series."""


@dataclass(frozen=True)
class Member:
    """One subject of the cohort.

    Parameters
    ----------
    number
        Seed of everything about the subject.
    modality
        ``T1w`` (MR, brain alone) or ``CT`` (whole head).
    split
        Use of the scan.
    lesion
        The planted lesion, or None for a healthy subject.
    """

    number: int
    modality: Modality
    split: Split
    lesion: Lesion | None = None

    @property
    def subject(self) -> str:
        """BIDS name, such as ``sub-07``."""
        return f"sub-{self.number:02d}"

    @property
    def person(self) -> Person:
        """Synthetic age and sex."""
        return draw_person(self.number)

    @property
    def scan_path(self) -> str:
        """Path of the scan, relative to the folder of the sample data."""
        dataset, folder, suffix = DATATYPE[self.modality]
        return f"{dataset}/{self.subject}/{folder}/{self.subject}_{suffix}.nii.gz"

    @property
    def lesion_path(self) -> str:
        """Path of the lesion mask; empty for a healthy subject."""
        return self._mask_path("lesions", "label-lesion") if self.lesion else ""

    @property
    def brain_path(self) -> str:
        """Path of the brain mask, which only scans of whole heads have; otherwise empty."""
        return self._mask_path("brain", "desc-brain") if self.modality == "CT" else ""

    def _mask_path(self, derivative: str, entity: str) -> str:
        dataset, folder, _ = DATATYPE[self.modality]
        return f"{dataset}/derivatives/{derivative}/{self.subject}/{folder}/{self.subject}_{entity}_mask.nii.gz"


def members() -> list[Member]:
    """Return the cohort: T1w, 24 + 20 + 8 healthy and 6 lesions; CT, 15 + 9 + 3 healthy and 6 lesions."""
    return [
        *_healthy("T1w", "train", 1, 24),
        *_healthy("T1w", "calibration", 25, 44),
        *_healthy("T1w", "test", 45, 52),
        *(Member(number, "T1w", "test", lesion) for number, lesion in MR_LESIONS.items()),
        *_healthy("CT", "train", 61, 63),
        *_healthy("CT", "calibration", 64, 65),
        *_healthy("CT", "test", 66, 66),
        *_healthy("CT", "train", 91, 102),
        *_healthy("CT", "calibration", 103, 109),
        *_healthy("CT", "test", 110, 111),
        *(Member(number, "CT", "test", lesion) for number, lesion in CT_LESIONS.items()),
    ]


def _healthy(modality: Modality, split: Split, first: int, last: int) -> list[Member]:
    return [Member(number, modality, split) for number in range(first, last + 1)]
