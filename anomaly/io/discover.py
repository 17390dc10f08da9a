"""Find scans in files, folders, BIDS data sets, DICOM, zips and manifests, without reading their voxels."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from anomaly.core.errors import InputError, ScanRefusedError
from anomaly.core.files import sha256_of_json
from anomaly.core.volume import Modality, Volume
from anomaly.io.bids import (
    Participant,
    find_lesion_mask,
    is_scan_name,
    parse_scan_name,
    read_participants,
    safe_file_name,
    warn_of_unmatched_participants,
)
from anomaly.io.contrast import wrong_kind_refusal
from anomaly.io.dicom import read_series
from anomaly.io.dicom_series import DicomSeries, Header, group_series, is_dicom, read_header
from anomaly.io.manifest import ManifestRow, read_manifest
from anomaly.io.nifti import is_nifti_name, read_nifti
from anomaly.io.stored_file import StoredFile, unreadable_error
from anomaly.io.subjects import tell_subjects_apart

_DICOM_SUFFIXES = {".dcm", ".ima", ".dicom"}
_NON_IMAGE_SUFFIXES = {
    ".json", ".tsv", ".csv", ".txt", ".md", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg",
    ".bval", ".bvec", ".py", ".yaml", ".yml", ".xml", ".npz", ".npy", ".parquet", ".safetensors", ".ckpt",
    ".gz", ".log",
}  # fmt: skip
_OUTPUT_MARKERS = ("cohort.json", "run.json")
_BIDS_SIDE_FOLDERS = {"derivatives", "sourcedata", "code", "stimuli"}


@dataclass(frozen=True)
class ScanSource:
    """A scan that was found, and how to read it.

    Parameters
    ----------
    scan_id
        Unique among the scans found together; pseudonymous for DICOM.
    files
        The NIfTI file, or the files of the DICOM series.
    origin, fragment
        Source as written to tables: the NIfTI file; or the folder or zip that the user named, and the pseudonym of
        the series in it. Names of DICOM files and folders may contain patient names, so they are left out.
    lesion_mask
        Expert or synthetic lesion mask, for evaluation.
    series
        The DICOM series; None for NIfTI.
    refusal
        Why the scan cannot be scored, if that is known without reading it.
    notes
        What name or header say about the image that a reader of its result should know.
    is_subject_named
        Whether a ``sub-…`` name, a manifest or a DICOM header names the subject.
    """

    scan_id: str
    files: tuple[StoredFile, ...]
    origin: Path
    fragment: str = ""
    subject: str = ""
    session: str = ""
    modality: Modality = Modality.UNKNOWN
    group: str = ""
    split: str = ""
    age: float | None = None
    sex: str = ""
    lesion_mask: Path | None = None
    series: DicomSeries | None = None
    refusal: ScanRefusedError | None = field(default=None, compare=False)
    notes: tuple[str, ...] = ()
    is_subject_named: bool = True

    @property
    def is_dicom(self) -> bool:
        """Whether the scan is a DICOM series."""
        return self.series is not None

    def read(self) -> Volume:
        """Read the scan; raise ScanRefusedError if it cannot be scored."""
        if self.refusal is not None:
            raise self.refusal
        if self.series is not None:
            volume = read_series(self.series, self.scan_id, self.modality)
        else:
            volume = read_nifti(self.files[0], self.scan_id, self.modality)
        return replace(volume, meta={**volume.meta, "notes": self.notes}) if self.notes else volume

    def cache_key(self) -> str:
        """Return the SHA-256 of the files' names, sizes and times, and of what is known of the image."""
        try:
            files = [file.cache_key() for file in self.files]
        except OSError:
            files = [[str(file.path), file.member] for file in self.files]
        refusal = [self.refusal.code] if self.refusal is not None else []
        return sha256_of_json([files, self.modality.value, *self.notes, *refusal])


def discover(sources: Iterable[Path | str], modality: Modality = Modality.UNKNOWN) -> list[ScanSource]:
    """Find the scans of all sources, in a fixed order, each file once.

    Parameters
    ----------
    sources
        NIfTI files, folders, BIDS data sets, DICOM files and folders, zips, and ``manifest.csv`` files.
    modality
        Modality of NIfTI files for which neither the name nor a manifest gives one. A DICOM series whose header
        does not give one stays unknown.

    Raises
    ------
    InputError
        If a source does not exist, or no source contains a scan.
    """
    paths = [Path(source) for source in sources]
    participants: dict[Path, dict[str, Participant]] = {}
    found = [scan for path in paths for scan in _scans_of_source(path, participants)]
    if paths and not found:
        where = ", ".join(str(path) for path in paths)
        raise InputError(f"no scan found in {where}; expected NIfTI, DICOM, zips of them or a manifest.csv")
    _warn_of_unmatched_participants(found, participants, paths)
    known = [replace(s, modality=modality) if _needs_modality(s) else s for s in found]
    return _with_unique_ids(_with_subjects(_without_duplicates(known)))


def _needs_modality(scan: ScanSource) -> bool:
    return scan.modality is Modality.UNKNOWN and not scan.is_dicom


def _warn_of_unmatched_participants(
    scans: Sequence[ScanSource], participants: dict[Path, dict[str, Participant]], sources: Sequence[Path]
) -> None:
    """Log participants without a scan and subjects without a row, of the data sets that are sources as a whole."""
    for root, known in participants.items():
        subjects = {s.subject for s in scans if not s.is_dicom and s.files[0].path.resolve().is_relative_to(root)}
        if known and any(root.is_relative_to(source.resolve()) for source in sources):
            warn_of_unmatched_participants(root, set(known), subjects)


def _with_subjects(scans: Sequence[ScanSource]) -> list[ScanSource]:
    """Return the scans with the subjects that their folders tell apart, where nothing names the subject."""
    unnamed = [scan for scan in scans if not scan.is_subject_named]
    identities = tell_subjects_apart([(s.origin / s.fragment).absolute() for s in unnamed])
    found = dict(zip(map(id, unnamed), identities, strict=True))
    return [
        replace(scan, subject=found[id(scan)].subject, scan_id=found[id(scan)].scan_id)
        if id(scan) in found
        else scan
        for scan in scans
    ]


def _scans_of_source(path: Path, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    if not path.exists():
        raise InputError(f"no source at {path}; give a NIfTI file, a folder, a DICOM zip or a manifest.csv")
    if path.is_file() and path.suffix.lower() in {".csv", ".tsv"}:
        return [scan for row in read_manifest(path) for scan in _manifest_scans(row, participants)]
    return _scans_at_path(path, participants)


def _scans_at_path(path: Path, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    if path.is_dir():
        return _scans_in_folder(path, participants)
    if zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
        return _scans_in_zip(path, path)
    if is_nifti_name(path.name):
        return [_user_named_nifti(path, participants)]
    header = _read_dicom_header(path)
    return _dicom_scans([header], path) if header else [_unreadable_file(StoredFile(path), path)]


def _manifest_scans(row: ManifestRow, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    found = _scans_at_path(row.path, participants) if row.path.exists() else [_missing_file(row.path)]
    return [
        replace(
            scan,
            subject=row.subject or scan.subject,
            session=row.session or scan.session,
            modality=row.modality if row.modality is not Modality.UNKNOWN else scan.modality,
            group=row.group or scan.group,
            split=row.split or scan.split,
            age=row.age if row.age is not None else scan.age,
            sex=row.sex or scan.sex,
            lesion_mask=row.mask or scan.lesion_mask,
            refusal=None if _is_refused_by_name(scan) and row.modality is not Modality.UNKNOWN else scan.refusal,
            is_subject_named=bool(row.subject) or scan.is_subject_named,
        )
        for scan in found
    ]


def _is_refused_by_name(scan: ScanSource) -> bool:
    return scan.refusal is not None and scan.refusal.code in {"wrong_modality", "not_a_scan"}


def _missing_file(path: Path) -> ScanSource:
    refusal = ScanRefusedError("missing_file", "no file at the path the manifest gives", "an existing file",
                               "correct the path; it is relative to the manifest")  # fmt: skip
    return ScanSource(parse_scan_name(path).scan_id, (StoredFile(path),), path, refusal=refusal)


def _scans_in_folder(root: Path, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    found: list[ScanSource] = []
    headers: list[Header] = []
    for path in _walk(root):
        if is_nifti_name(path.name):
            found.extend([_nifti_scan(path, participants)] if is_scan_name(path.name) else [])
        elif path.suffix.lower() == ".zip":
            found.extend(_scans_in_zip(path, root))
        elif header := _read_dicom_header(path):
            headers.append(header)
        elif path.suffix.lower() in _DICOM_SUFFIXES:
            found.append(_unreadable_file(StoredFile(path), root))
    return found + _dicom_scans(headers, root)


def _walk(root: Path) -> Iterator[Path]:
    """Yield files in a fixed order; skip hidden folders, output of this program, and BIDS folders without scans."""
    visited: set[Path] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in visited:  # a symbolic link to a parent folder
            folders.clear()
            continue
        visited.add(real)
        is_bids = "dataset_description.json" in names or any(f.startswith("sub-") for f in folders)
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and f != "__MACOSX"
            and not (is_bids and f in _BIDS_SIDE_FOLDERS)
        )  # fmt: skip
        if any(marker in names for marker in _OUTPUT_MARKERS):
            folders.clear()
            continue
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _read_dicom_header(path: Path) -> Header | None:
    """Read the DICOM header of a file; None if neither its first bytes nor its suffix are those of DICOM."""
    ending = path.suffix.lower()
    if ending in _NON_IMAGE_SUFFIXES:
        return None
    try:
        with path.open("rb") as stream:
            if not is_dicom(stream.read(132)) and ending not in _DICOM_SUFFIXES:
                return None
            stream.seek(0)
            return read_header(StoredFile(path), stream)
    except OSError:
        return None


def _scans_in_zip(path: Path, origin: Path) -> list[ScanSource]:
    """Return the scans in a zip, which is read in memory and not unpacked.

    ``origin`` is the source that tables name for DICOM. It is the zip only if the user named the zip: the name of a
    zip that was found in a folder may contain a patient name.
    """
    headers: list[Header] = []
    found: list[ScanSource] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(m.filename for m in archive.infolist() if not m.is_dir()):
                file = StoredFile(path, member)
                if file.name.startswith(".") or "__MACOSX" in member:
                    continue
                if is_nifti_name(member):
                    found.extend([_zipped_nifti(file)] if is_scan_name(file.name) else [])
                elif PurePosixPath(member).suffix.lower() not in _NON_IMAGE_SUFFIXES:
                    headers.extend(_read_zipped_header(archive, file))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError):
        return [_unreadable_file(StoredFile(path), origin)]
    return (found + _dicom_scans(headers, origin)) or [_unreadable_file(StoredFile(path), origin)]


def _read_zipped_header(archive: zipfile.ZipFile, file: StoredFile) -> list[Header]:
    with archive.open(file.member) as stream:
        start = stream.read(132)
        if not is_dicom(start) and PurePosixPath(file.member).suffix.lower() not in _DICOM_SUFFIXES:
            return []
        stream.seek(0)
        header = read_header(file, stream)
    return [header] if header else []


def _dicom_scans(headers: Sequence[Header], origin: Path) -> list[ScanSource]:
    return [
        ScanSource(
            scan_id=series.scan_id,
            files=series.files,
            origin=origin,
            fragment=series.scan_id,
            subject=series.subject,
            session=series.session,
            modality=series.kind.modality,
            age=series.headers[0].age,
            sex=series.headers[0].sex,
            series=series,
            refusal=series.refusal or wrong_kind_refusal(series.kind, "header"),
            notes=series.kind.notes,
        )
        for series in group_series(headers)
    ]


def _nifti_scan(path: Path, participants: dict[Path, dict[str, Participant]]) -> ScanSource:
    name = parse_scan_name(path)
    person = read_participants(path, participants).get(name.subject, Participant())
    return ScanSource(
        name.scan_id, (StoredFile(path),), path, "", name.subject, name.session, name.modality, person.group,
        "", person.age, person.sex, find_lesion_mask(path), None, wrong_kind_refusal(name.kind, "name"),
        name.kind.notes, name.is_subject_named,
    )  # fmt: skip


def _user_named_nifti(path: Path, participants: dict[Path, dict[str, Participant]]) -> ScanSource:
    """Return the scan of a file that the user named; a mask is refused instead of skipped."""
    scan = _nifti_scan(path, participants)
    if is_scan_name(path.name):
        return scan
    return replace(scan, refusal=ScanRefusedError(
        "not_a_scan", "a mask or label map by its name", "a scan",
        "rename the file, or name its modality in a manifest.csv, if it is a scan",
    ))  # fmt: skip


def _zipped_nifti(file: StoredFile) -> ScanSource:
    scan = _nifti_scan(Path(file.member.replace("\\", "/")), {})
    return replace(scan, files=(file,), origin=file.path, fragment=file.member, lesion_mask=None)


def _unreadable_file(file: StoredFile, origin: Path) -> ScanSource:
    name = safe_file_name(origin.stem) if file.path == origin else f"{safe_file_name(origin.name)}_unreadable"
    refusal = unreadable_error("a file that is no NIfTI, DICOM or zip")
    return ScanSource(name, (file,), origin, subject=name, refusal=refusal)


def _without_duplicates(scans: Sequence[ScanSource]) -> list[ScanSource]:
    """Keep one scan of those with the same files: the one with the most metadata."""
    by_files: dict[tuple[object, ...], ScanSource] = {}
    for scan in scans:
        key = tuple((f.path.resolve(), f.member) for f in scan.files)
        by_files[key] = max(by_files.get(key, scan), scan, key=_n_known_facts)
    return list(by_files.values())


def _n_known_facts(scan: ScanSource) -> int:
    facts = (scan.group, scan.split, scan.age, scan.sex, scan.lesion_mask, scan.session)
    return sum(fact not in {"", None} for fact in facts)


def _with_unique_ids(scans: Sequence[ScanSource]) -> list[ScanSource]:
    taken: set[str] = set()
    named: list[ScanSource] = []
    for scan in scans:
        name, count = scan.scan_id, 1
        while name.lower() in taken:  # some file systems ignore case
            count += 1
            name = f"{scan.scan_id}_{count}"
        taken.add(name.lower())
        named.append(replace(scan, scan_id=name))
    return named
