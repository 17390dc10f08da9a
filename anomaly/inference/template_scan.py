"""Read a scan and prepare it for a model, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anomaly.cohort.prepare import with_expected_modality
from anomaly.cohort.workers import one_thread
from anomaly.core.covariates import UNKNOWN_COVARIATES, covariates
from anomaly.core.errors import InputError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Modality, Volume
from anomaly.io.discover import ScanSource, discover
from anomaly.preprocessing.chain import Chain
from anomaly.qc.checks import Level, QcSettings, check, check_modality, raise_first_refusal
from anomaly.qc.metrics import image_quality_metrics


@dataclass(frozen=True, eq=False)
class TemplateScan:
    """A scan on the template grid, ready for a model.

    Parameters
    ----------
    scan_id
        Name of the scan in tables and files.
    voxels, mask
        float32 and bool ``(I, J, K)`` on the template grid; voxels are 0 outside the mask.
    geometry
        The scan's own grid.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    covariates
        Age and sex ``(2,)``, NaN where unknown.
    numbers
        Quality numbers of the scan and of its preparation.
    warnings
        Findings of the quality checks that do not refuse the scan.
    """

    scan_id: str
    voxels: FloatArray
    mask: MaskArray
    geometry: Geometry
    template_from_scan: AffineArray
    covariates: FloatArray = field(default_factory=UNKNOWN_COVARIATES.copy)
    numbers: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def load_scan(path: str | Path, modality: Modality | str = Modality.UNKNOWN) -> Volume:
    """Read one scan as it was received.

    Parameters
    ----------
    path
        A NIfTI, MGH, NRRD or MetaImage file, a DICOM folder, or a zip of one of them.
    modality
        What an image file holds where its name does not say, e.g. ``"T1w"``.

    Raises
    ------
    InputError
        There is nothing at the path, or not exactly one scan.
    ScanRefusedError
        The scan cannot be used; the error says what was found, what was expected and what to do.

    Examples
    --------
    >>> import anomaly
    >>> scan = anomaly.load_scan("sample_data/mr/sub-53/anat/sub-53_T1w.nii.gz")
    >>> scan.modality.value, scan.voxels.ndim
    ('T1w', 3)
    """
    return find_scan(path, Modality(modality)).read()


def find_scan(path: str | Path, modality: Modality = Modality.UNKNOWN) -> ScanSource:
    """Return the one scan at a path, not read yet.

    Raises
    ------
    InputError
        There is nothing at the path, or not exactly one scan.
    """
    found = discover([path], modality)
    if len(found) != 1:
        names = ", ".join(scan.scan_id for scan in found[:5])
        raise InputError(
            f"found {len(found)} scans at {path} ({names}{', …' if len(found) > 5 else ''}), expected one; "
            "give the path of one scan, or score them all with `anomaly score`"
        )
    return found[0]


def prepare_file(path: str | Path, chain: Chain, age: float | None = None, sex: str = "") -> TemplateScan:
    """Read the scan at a path and prepare it; age and sex that are not given are those that the files name.

    Raises
    ------
    InputError
        There is nothing at the path, or not exactly one scan.
    ScanRefusedError
        The scan must not be scored.
    """
    source = find_scan(path)
    raise_first_refusal(list(check_modality(source.modality, chain.settings.modality)))  # before it is read
    volume = with_expected_modality(source.read(), chain.settings.modality, source.is_dicom)
    known_age, known_sex = source.age if age is None else age, sex or source.sex
    return prepare_volume(volume, chain, known_age, known_sex)


def prepare_volume(volume: Volume, chain: Chain, age: float | None = None, sex: str = "") -> TemplateScan:
    """Check a scan and bring it onto the template grid, as ``anomaly ingest`` does.

    Parameters
    ----------
    volume
        The scan as it was received. One of unknown modality is taken for what the chain is for.
    chain
        The preprocessing of the model.
    age, sex
        Age in years, and ``"F"`` or ``"M"``, where known.

    Raises
    ------
    ScanRefusedError
        The scan must not be scored.
    """
    expected = chain.settings.modality
    volume = with_expected_modality(volume, expected)
    numbers = image_quality_metrics(volume)
    findings = check(volume, numbers, expected, QcSettings())
    raise_first_refusal(findings)
    with one_thread():  # so that the result does not depend on the machine
        prepared = chain.apply(volume)
    return TemplateScan(
        scan_id=volume.scan_id,
        voxels=prepared.voxels,
        mask=prepared.mask,
        geometry=volume.geometry,
        template_from_scan=prepared.template_from_scan,
        covariates=covariates(age, sex),
        numbers={**numbers, **prepared.numbers},
        warnings=tuple(finding.message for finding in findings if finding.level is Level.WARNING),
    )
