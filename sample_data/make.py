"""Make the sample data: small MR and CT head scans, synthesised from the MNI152 tissue maps.

Run from the root of the repository::

    python -m sample_data.make

It needs no network and no data beyond what nilearn installs, and writes the same bytes each time.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sample_data.recipe.anatomy import BRAIN_MAPS, Anatomy, BoolArray, load_brain
from sample_data.recipe.cohort import (
    DATATYPE,
    DICOM_MODALITY,
    DICOM_SUBJECTS,
    HEAD_SUBJECT,
    REFUSED_SUBJECT,
    Member,
    members,
)
from sample_data.recipe.dicom import write_series
from sample_data.recipe.grid import BRAIN, HEAD, FieldOfView, Grid, draw_grid, make_grid
from sample_data.recipe.head import SKULL_SCALES, draw_skull_scale, with_head
from sample_data.recipe.nifti import write_nifti
from sample_data.recipe.refuse import write_refused
from sample_data.recipe.scanner import Patient, Scan, sample_patient, sample_slices, scan_ct, scan_mr
from sample_data.recipe.subjects import draw_person, draw_warp

FOLDERS = ("mr", "ct", "dicom", "head", "refuse")
COLUMNS = ("path", "subject", "session", "modality", "group", "split", "mask", "age", "sex")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the whole folder."""
    parser = argparse.ArgumentParser(description="Make the sample data.")
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, help="where to write (default: this folder)")
    out = parser.parse_args(arguments).out
    for folder in FOLDERS:
        shutil.rmtree(out / folder, ignore_errors=True)
    heads = make_heads()
    cohort = members()
    for member in cohort:
        write_member(out, member, scan_member(member, heads))
    extra = write_formats(out, cohort, heads[1.0])
    write_faulty(out, heads[1.0])
    write_tables(out, cohort, extra)
    print(f"wrote {len(cohort)} scans, {len(extra)} in other formats, to {out}", file=sys.stderr)


def make_heads() -> dict[float, Anatomy]:
    """Return the maps of the brain and of the head around it, by the thickness of the skull."""
    brain = load_brain()
    return {scale: with_head(brain, scale) for scale in SKULL_SCALES}


def scan_member(member: Member, heads: Mapping[float, Anatomy]) -> Scan:
    """Draw a subject and scan it; ``heads`` are those of :func:`make_heads`."""
    if member.modality == "T1w":
        return scan_mr(draw_patient(member.number, heads[1.0].only(BRAIN_MAPS), BRAIN), member.lesion)
    head, grid = heads[draw_skull_scale(member.number)], draw_grid(member.number, HEAD)
    warp = draw_warp(member.number, member.person)
    return scan_ct(sample_slices(member.number, head, warp, grid), member.lesion)


def draw_patient(number: int, head: Anatomy, view: FieldOfView, grid: Grid | None = None) -> Patient:
    """Draw a subject and sample its anatomy on the given grid, or on a grid drawn for it."""
    warp = draw_warp(number, draw_person(number))
    return sample_patient(number, head, warp, grid or draw_grid(number, view))


def write_member(out: Path, member: Member, scan: Scan) -> None:
    """Write a scan of the cohort, its masks and, for some, the same scan as DICOM."""
    write_nifti(out / member.scan_path, scan.voxels, scan.grid.affine)
    if scan.lesion is not None:
        write_mask(out / member.lesion_path, scan.lesion, scan.grid)
    if member.brain_path:
        write_mask(out / member.brain_path, scan.brain, scan.grid)
    if DICOM_SUBJECTS[member.modality] == member.number:
        write_series(out / dicom_path(member), member.subject, member.person, scan, DICOM_MODALITY[member.modality])


def write_formats(out: Path, cohort: Iterable[Member], head: Anatomy) -> list[dict[str, object]]:
    """Write a T1 scan of a whole head; return its row and those of the scans in DICOM."""
    scan = scan_mr(draw_patient(HEAD_SUBJECT, head, HEAD), head=True)
    name = f"sub-{HEAD_SUBJECT}"
    path = f"head/{name}/anat/{name}_T1w.nii.gz"
    write_nifti(out / path, scan.voxels, scan.grid.affine)
    write_mask(out / f"head/derivatives/brain/{name}/anat/{name}_desc-brain_mask.nii.gz", scan.brain, scan.grid)
    as_dicom = [member for member in cohort if member.number in DICOM_SUBJECTS.values()]
    return [
        {**row(Member(HEAD_SUBJECT, "T1w", "test")), "path": path},
        *({**row(member), "path": dicom_path(member)} for member in as_dicom),
    ]


def write_faulty(out: Path, head: Anatomy) -> None:
    """Write the scans that must be refused, and a table of their faults."""
    grid = make_grid(BRAIN, "LPS", (4.0, 4.0, 4.0))
    scan = scan_mr(draw_patient(REFUSED_SUBJECT, head, BRAIN, grid))
    faults = write_refused(out / "refuse", draw_person(REFUSED_SUBJECT), scan)
    rows = [{"path": path, "fault": fault} for path, fault in faults.items()]
    write_table(out / "refuse" / "faults.tsv", ("path", "fault"), rows)


def write_tables(out: Path, cohort: Sequence[Member], extra: Iterable[dict[str, object]]) -> None:
    """Write the manifest, the labels, the table of other formats and the tables of BIDS."""
    write_table(out / "manifest.csv", COLUMNS, map(row, cohort))
    write_table(out / "formats.csv", COLUMNS, extra)
    labels: list[dict[str, object]] = [
        {"subject": member.subject, "label": int(member.lesion is not None), "mask": member.lesion_path}
        for member in cohort
    ]
    write_table(out / "labels.tsv", ("subject", "label", "mask"), labels)
    for modality, (dataset, _, _) in DATATYPE.items():
        people: list[dict[str, object]] = [
            {"participant_id": member.subject, "age": member.person.age, "sex": member.person.sex}
            for member in cohort
            if member.modality == modality
        ]
        write_table(out / dataset / "participants.tsv", ("participant_id", "age", "sex"), people)
        describe(out / dataset, f"Synthetic {modality} head scans", "raw")
    for folder in sorted(out.glob("*/derivatives/*")):
        describe(folder, f"Masks of the synthetic scans: {folder.name}", "derivative")


def row(member: Member) -> dict[str, object]:
    """Return the row of a member in the manifest."""
    return {
        "path": member.scan_path,
        "subject": member.subject,
        "session": "",
        "modality": member.modality,
        "group": "lesion" if member.lesion else "healthy",
        "split": member.split,
        "mask": member.lesion_path,
        "age": member.person.age,
        "sex": member.person.sex,
    }


def dicom_path(member: Member) -> str:
    """Return the folder of a scan's DICOM series, relative to the folder of the sample data."""
    return f"dicom/{DATATYPE[member.modality][0]}/{member.subject}"


def write_mask(path: Path, mask: BoolArray, grid: Grid) -> None:
    """Write a mask, shape (I, J, K), as zeros and ones in the grid of its scan."""
    write_nifti(path, mask.astype(np.uint8), grid.affine)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table, separated by commas (.csv) or tabs (.tsv)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(stream, columns, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def describe(folder: Path, name: str, kind: str) -> None:
    """Write the ``dataset_description.json`` that BIDS requires."""
    content: dict[str, object] = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": kind}
    if kind == "derivative":
        content["GeneratedBy"] = [{"Name": "sample_data/make.py"}]
    text = json.dumps(content, indent=2) + "\n"
    (folder / "dataset_description.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
