"""Find scans in files, folders, BIDS data sets, DICOM, zips and manifests, without reading their voxels."""

from __future__ import annotations

import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomaly.core.errors import InputError, ScanRefusedError
from anomaly.core.files import sha256_of_json
from anomaly.core.volume import Modality, ScanWarning, Volume
from anomaly.io.bids import (
    Participant,
    find_lesion_mask,
    is_scan_name,
    parse_participants,
    parse_scan_name,
    read_participants,
    safe_file_name,
    warn_of_unmatched_participants,
)
from anomaly.io.contrast import wrong_kind_refusal
from anomaly.io.dicom_grouping import DicomSeries, group_series, with_problems_beside
from anomaly.io.dicom_header import Header, damaged_header, read_header
from anomaly.io.dicom_volume import read_series
from anomaly.io.file_types import (
    FIRST_OF_PAIR,
    N_START_BYTES,
    OTHER_ENDINGS,
    READ_ENDINGS,
    UNREAD_ENDINGS,
    ending_of,
)
from anomaly.io.freesurfer import is_freesurfer_label_map
from anomaly.io.image_file import files_of, read_image
from anomaly.io.image_stream import foreign_content_error, read_up_to
from anomaly.io.manifest import ManifestRow, read_manifest
from anomaly.io.stored_file import StoredFile, check_regular, open_file, read_bytes, reading, unreadable_error
from anomaly.io.subjects import tell_subjects_apart
from anomaly.io.tables import parse_table
from anomaly.io.tree import FolderTree, FoundFile, Tree, ZipTree, find_files


@dataclass(frozen=True)
class ScanSource:
    """A scan that was found, and how to read it.

    Parameters
    ----------
    scan_id
        Unique among the scans found together; pseudonymous for DICOM.
    files
        The image file, with the file of its header or voxels if that is another; or the files of the DICOM series.
    origin, fragment
        Source as written to tables: the image file; or the folder or zip that the user named, and the pseudonym of
        the series in it. Names of DICOM files and folders may contain patient names, so they are left out.
    lesion_mask
        Expert or synthetic lesion mask, for evaluation.
    series
        The DICOM series; None for an image file.
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
            volume = read_image(self.files[0], self.scan_id, self.modality)
        return replace(volume, warnings=(*volume.warnings, *map(self._note_warning, self.notes)))

    def _note_warning(self, note: str) -> ScanWarning:
        kind = f" {self.modality.value}" if self.modality is not Modality.UNKNOWN else ""
        remedy = "check that the image is meant to be scored"
        return ScanWarning("kind_of_image", note, f"a plain{kind} scan", remedy)

    def cache_key(self) -> str:
        """Return the SHA-256 of the files' names, sizes and times, and of what is known of the image.

        The warning of a series is part of it, because it may depend on other files in its folder or zip.
        """
        try:
            files = [file.cache_key() for file in self.files]
        except (OSError, ValueError):  # it is gone, or no file can have such a path
            files = [[str(file.path), file.member] for file in self.files]
        refusal = [self.refusal.code] if self.refusal is not None else []
        warning = [self.series.warning] if self.series is not None and self.series.warning else []
        return sha256_of_json([files, self.modality.value, *self.notes, *refusal, *warning])


def discover(sources: Iterable[Path | str], modality: Modality = Modality.UNKNOWN) -> list[ScanSource]:
    """Find the scans of all sources, in a fixed order, each file once.

    Parameters
    ----------
    sources
        Image files, folders, BIDS data sets, DICOM files and folders, zips, and ``manifest.csv`` files.
    modality
        Modality of image files for which neither the name nor a manifest gives one. A DICOM series whose header
        does not give one stays unknown.

    Raises
    ------
    InputError
        If a source does not exist, no source contains a scan, or a manifest or ``participants.tsv`` cannot be read
        as a table.
    """
    paths = [Path(source) for source in sources]
    participants: dict[Path, dict[str, Participant]] = {}
    found = [scan for path in paths for scan in _scans_of_source(path, participants)]
    if paths and not found:
        where = ", ".join(str(path) for path in paths)
        raise InputError(
            f"no scan found in {where}; expected NIfTI, MGH, NRRD, MetaImage, DICOM, a zip or a manifest.csv"
        )
    _warn_of_unmatched_participants(found, participants, paths)
    known = [replace(s, modality=modality) if _needs_modality(s) else s for s in found]
    return _with_unique_ids(_with_subjects(_join_series(_without_duplicates(known))))


def _needs_modality(scan: ScanSource) -> bool:
    return scan.modality is Modality.UNKNOWN and not scan.is_dicom


def _warn_of_unmatched_participants(
    scans: Sequence[ScanSource], participants: dict[Path, dict[str, Participant]], sources: Sequence[Path]
) -> None:
    """Log participants without a scan and subjects without a row, of the data sets that are sources as a whole."""
    for root, known in participants.items():
        subjects = {s.subject for s in scans if not s.is_dicom and _real_folder(s.files[0]).is_relative_to(root)}
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
    if not os.path.lexists(path):
        raise InputError(f"no source at {path}; give an image file, a folder, a zip or a manifest.csv")
    if path.is_file() and path.suffix.lower() in {".csv", ".tsv"}:
        return [scan for row in read_manifest(path) for scan in _manifest_scans(row, participants)]
    return _scans_at_path(path, participants)


def _scans_at_path(path: Path, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises an error for a path that must not be read
        return _scans_in_tree(FolderTree(path), path, participants)
    file, ending = StoredFile(path), ending_of(path.name)
    try:
        check_regular(path)
        if ending in READ_ENDINGS:
            return [_user_named_image(file, participants)]
        if ending in UNREAD_ENDINGS:
            raise _unread_type_error(ending)
        if ending == ".zip" or zipfile.is_zipfile(path):
            return _scans_in_zip(path, path, participants)
        header = _read_dicom_header(FolderTree(path.parent), file)
    except ScanRefusedError as error:
        return [_refused_file(file, path, error)]
    return _dicom_scans([header], path) or [_refused_file(file, path, _content_error(file, "a scan"))]


def _manifest_scans(row: ManifestRow, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    found = _scans_at_path(row.path, participants) if os.path.lexists(row.path) else [_missing_file(row.path)]
    return [
        replace(
            _with_named_modality(scan, row.modality),
            subject=row.subject or scan.subject,
            session=row.session or scan.session,
            group=row.group or scan.group,
            split=row.split or scan.split,
            age=row.age if row.age is not None else scan.age,
            sex=row.sex or scan.sex,
            lesion_mask=row.mask or scan.lesion_mask,
            is_subject_named=bool(row.subject) or scan.is_subject_named,
        )
        for scan in found
    ]


def _with_named_modality(scan: ScanSource, modality: Modality) -> ScanSource:
    """Return a scan with the modality that a manifest names, whatever its name or header say of its kind."""
    if modality is Modality.UNKNOWN:
        return scan
    is_refused_by_kind = scan.refusal is not None and scan.refusal.code in {"wrong_modality", "not_a_scan"}
    return replace(scan, modality=modality, refusal=None if is_refused_by_kind else scan.refusal)


def _missing_file(path: Path) -> ScanSource:
    refusal = ScanRefusedError("missing_file", "no file at the path the manifest gives", "an existing file",
                               "correct the path; it is relative to the manifest")  # fmt: skip
    return _refused_file(StoredFile(path), path, refusal)


def _scans_in_zip(path: Path, origin: Path, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    """Return the scans in a zip, which is read in memory and not unpacked.

    ``origin`` is the source that tables name for DICOM. It is the zip only if the user named the zip: the name of a
    zip that was found in a folder may contain a patient name.
    """
    file = StoredFile(path)
    with ExitStack() as stack:
        try:
            check_regular(path)
            with reading():
                archive = stack.enter_context(zipfile.ZipFile(path))
        except ScanRefusedError as error:
            refusal = error if error.is_transient else _content_error(file, "a complete zip")
            return [_refused_file(file, origin, refusal)]
        found = _scans_in_tree(ZipTree(archive, path), origin, participants)
    nothing = unreadable_error("a zip without a scan", "scans in it", "check that the zip is the right one")
    return found or [_refused_file(file, origin, nothing)]


def _scans_in_tree(tree: Tree, origin: Path, participants: dict[Path, dict[str, Participant]]) -> list[ScanSource]:
    """Return the scans of a folder or zip. The error of one image or DICOM file is one row, and stops no other.

    Raises
    ------
    InputError
        If a ``participants.tsv`` cannot be read as a table; this ends the batch.
    """
    search = _Search(tree, origin, participants)
    for entry in find_files(tree):
        try:
            with reading():
                search.add(entry)
        except ScanRefusedError as error:
            search.refused.append((entry.file, error))
    dicom = _dicom_scans(search.headers, origin)
    if tree.is_zip and search.unopened:
        dicom = [_in_damaged_zip(scan) for scan in dicom]
    of_series = {file for scan in dicom for file in scan.files}
    refused = [(file, error) for file, error in [*search.refused, *tree.problems] if file not in of_series]
    return _without_data_files(search.found) + dicom + _refused_files(refused, origin)


@dataclass(frozen=True)
class _Search:
    """The search of one folder or zip: what was found so far."""

    tree: Tree
    origin: Path
    participants: dict[Path, dict[str, Participant]]
    found: list[ScanSource] = field(default_factory=list)
    headers: list[Header] = field(default_factory=list)
    refused: list[tuple[StoredFile, ScanRefusedError]] = field(default_factory=list)
    unopened: list[StoredFile] = field(default_factory=list)

    def add(self, entry: FoundFile) -> None:
        """Add what a file is; raise ScanRefusedError if it is nothing that is read."""
        file, ending = entry.file, ending_of(entry.file.name)
        if _is_second_of_pair(entry, ending):
            return
        if ending in READ_ENDINGS:
            if _is_scan(file.name):
                self.found.append(_image_scan(file, self.participants))
        elif ending in UNREAD_ENDINGS:
            if _is_scan(file.name):
                self.found.append(_refused_file(file, self.origin, _unread_type_error(ending)))
        elif ending == ".zip":
            self._add_zip(file)
        elif ending not in OTHER_ENDINGS:
            self._add_dicom(file)
        elif self.tree.is_zip and file.name == "participants.tsv":
            where = f"{_printable(file.member)} in {_printable(self.origin).name}"
            table = parse_table(read_bytes(file), where, "\t")
            self.participants[_path_of(file).parent.resolve()] = parse_participants(table, where)

    def _add_dicom(self, file: StoredFile) -> None:
        try:
            self.headers.append(_read_dicom_header(self.tree, file))
        except ScanRefusedError as error:  # it is missing from a series whose files are named like it
            self.unopened.append(file)
            damaged = damaged_header(file, error.found)
            self.headers.append(replace(damaged, is_dicom=False, is_fault_transient=error.is_transient))
            raise

    def _add_zip(self, file: StoredFile) -> None:
        if self.tree.is_zip:
            raise unreadable_error(
                "a zip inside a zip", "scans in one zip", "unpack the outer zip and give the folder"
            )
        self.found.extend(_scans_in_zip(file.path, self.origin, self.participants))


def _in_damaged_zip(scan: ScanSource) -> ScanSource:
    """Return a scan of a zip with a member that cannot be opened: its name, too, may be damaged."""
    if scan.series is None:
        return scan
    return replace(scan, series=with_problems_beside(scan.series, ["a file in its zip that cannot be opened"]))


def _is_second_of_pair(entry: FoundFile, ending: str) -> bool:
    stem = entry.file.name[: -len(ending)].lower()
    return any(stem + first in entry.neighbours for first in FIRST_OF_PAIR.get(ending, ()))


def _without_data_files(scans: Sequence[ScanSource]) -> list[ScanSource]:
    """Leave out the files that hold the voxels of another one."""
    data_files = {file for scan in scans for file in scan.files[1:]}
    return [scan for scan in scans if scan.files[0] not in data_files]


def _read_dicom_header(tree: Tree, file: StoredFile) -> Header:
    """Read the DICOM header of a file; raise ScanRefusedError if the file cannot be opened."""
    with tree.open(file) as (stream, _):
        return read_header(file, stream)


def _dicom_scans(headers: Sequence[Header], origin: Path) -> list[ScanSource]:
    return [_dicom_scan(series, origin) for series in group_series(headers)]


def _dicom_scan(series: DicomSeries, origin: Path) -> ScanSource:
    return ScanSource(
        scan_id=series.scan_id,
        files=series.files,
        origin=origin,
        fragment=series.scan_id,
        subject=series.subject,
        session=series.session,
        modality=series.modality,
        age=series.headers[0].age,
        sex=series.headers[0].sex,
        series=series,
        refusal=series.refusal or wrong_kind_refusal(series.kind, "header"),
        notes=series.kind.notes,
    )


def _image_scan(file: StoredFile, participants: dict[Path, dict[str, Participant]]) -> ScanSource:
    scan = _scan_by_name(file)
    person = read_participants(_path_of(file), participants).get(scan.subject, Participant())
    mask = None if file.member else find_lesion_mask(file.path)
    return replace(scan, files=files_of(file), group=person.group, age=person.age, sex=person.sex, lesion_mask=mask)


def _scan_by_name(file: StoredFile) -> ScanSource:
    """Return what the name of an image tells, without opening anything."""
    name = parse_scan_name(_printable(_path_of(file)))
    fragment = str(_printable(file.member)) if file.member else ""
    return ScanSource(
        name.scan_id, (file,), _printable(file.path), fragment, name.subject, name.session, name.modality,
        refusal=wrong_kind_refusal(name.kind, "name"), notes=name.kind.notes,
        is_subject_named=name.is_subject_named,
    )  # fmt: skip


def _real_folder(file: StoredFile) -> Path:
    return Path(os.path.realpath(_path_of(file).parent))


def _path_of(file: StoredFile) -> Path:
    """Return the path of a file; for a member of a zip, as if the zip were a folder."""
    return file.path / file.member.replace("\\", "/").lstrip("/") if file.member else file.path


def _is_scan(name: str) -> bool:
    """Return whether an image is a scan by its name, not a mask or label map."""
    return is_scan_name(name) and not is_freesurfer_label_map(name)


def _user_named_image(file: StoredFile, participants: dict[Path, dict[str, Participant]]) -> ScanSource:
    """Return the scan of a file that the user named; a mask is refused instead of skipped."""
    scan = _image_scan(file, participants)
    if _is_scan(file.name):
        return scan
    return replace(scan, refusal=ScanRefusedError(
        "not_a_scan", "a mask or label map by its name", "a scan",
        "rename the file, or name its modality in a manifest.csv, if it is a scan",
    ))  # fmt: skip


def _refused_files(refused: Sequence[tuple[StoredFile, ScanRefusedError]], origin: Path) -> list[ScanSource]:
    """Return one scan for all files that are refused for the same reason, as their names are not written down."""
    by_reason: dict[tuple[str, bool], list[tuple[StoredFile, ScanRefusedError]]] = defaultdict(list)
    for file, error in refused:
        by_reason[str(error), error.is_transient].append((file, error))
    scans = []
    for alike in by_reason.values():
        file, error = alike[0]
        found = error.found if len(alike) == 1 else f"{len(alike)} files, each of them {error.found}"
        counted = ScanRefusedError(error.code, found, error.expected, error.remedy, error.is_transient)
        scans.append(replace(_refused_file(file, origin, counted), files=tuple(other for other, _ in alike)))
    return scans


def _refused_file(file: StoredFile, origin: Path, refusal: ScanRefusedError) -> ScanSource:
    """Return the scan of a file that is not read.

    Names of images are written down. Those of DICOM files and archives may contain patient names, so they are not.
    """
    ending = ending_of(file.name)
    if ending in READ_ENDINGS or (ending in UNREAD_ENDINGS and not UNREAD_ENDINGS[ending].may_name_patient):
        return replace(_scan_by_name(file), refusal=refusal)
    shown = _printable(origin)
    name = "unreadable" if file.path == origin else f"{safe_file_name(shown.name)}_unreadable"
    return ScanSource(name, (file,), shown, subject=name, refusal=refusal)


def _unread_type_error(ending: str) -> ScanRefusedError:
    kind = UNREAD_ENDINGS[ending]
    return ScanRefusedError("unsupported_format", kind.description, "NIfTI, DICOM, MGH, NRRD, MetaImage or a zip",
                            kind.remedy)  # fmt: skip


def _content_error(file: StoredFile, expected: str) -> ScanRefusedError:
    """Return the error of a file that is not what its name says, and say what it is instead."""
    try:
        with open_file(file) as (stream, _):
            start = read_up_to(stream, N_START_BYTES)
    except ScanRefusedError as error:
        return error
    if start.startswith(b"PK"):
        return unreadable_error("a damaged or incomplete zip", expected)
    return foreign_content_error(start, expected)


def _printable(path: Path | str) -> Path:
    """Return a path without bytes that are no text and control characters, as tables and logs can show it."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return Path(re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text))


def _without_duplicates(scans: Sequence[ScanSource]) -> list[ScanSource]:
    """Keep one scan of those with the same files: the one with the most metadata."""
    by_files: dict[tuple[object, ...], ScanSource] = {}
    for scan in scans:
        key = tuple(sorted(f.identity() for f in scan.files))
        by_files[key] = max(by_files.get(key, scan), scan, key=_n_known_facts)
    return list(by_files.values())


def _join_series(scans: Sequence[ScanSource]) -> list[ScanSource]:
    """Group the files of each DICOM series again, because several folders, zips or sources may hold parts of it."""
    by_uid: dict[str, list[ScanSource]] = {}
    for number, scan in enumerate(scans):
        uid = scan.series.uid if scan.series else ""
        by_uid.setdefault(uid or f"scan {number}", []).append(scan)
    return [scan for parts in by_uid.values() for scan in (_regrouped(parts) if len(parts) > 1 else parts)]


def _regrouped(parts: Sequence[ScanSource]) -> list[ScanSource]:
    headers = {h.file: h for part in parts if part.series for h in part.series.headers}
    return [
        _joined(series, [part for part in parts if not set(part.files).isdisjoint(series.files)])
        for series in group_series([headers[file] for file in sorted(headers)])
    ]


def _joined(series: DicomSeries, parts: Sequence[ScanSource]) -> ScanSource:
    """Return the scan of a series from the sources that hold parts of it, with what a manifest says of a part."""
    problems = [problem for part in parts if part.series for problem in part.series.problems_beside]
    best = max(parts, key=_n_known_facts)
    scan = replace(
        _dicom_scan(with_problems_beside(series, problems), best.origin),
        subject=best.subject, session=best.session, group=best.group, split=best.split, age=best.age, sex=best.sex,
        lesion_mask=best.lesion_mask,
    )  # fmt: skip
    named = [p.modality for p in parts if p.series is not None and p.modality is not p.series.modality]
    return _with_named_modality(scan, named[0] if named else Modality.UNKNOWN)


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
