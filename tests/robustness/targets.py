"""The inputs that are fuzzed: one for each format and container that is read."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK

from tests.io.dicom_factory import encode, make_series, write_series
from tests.robustness.fuzzing import Target
from tests.robustness.mutations import Mutation, Rng, mutate_bytes, mutate_dicom_element, mutate_nifti_header

SHAPE = (12, 14, 10)
NAME = "sub-01_T1w"
HEADER_BYTES = 348  # of a NIfTI-1 file; four bytes that announce extensions follow, then the voxels
SCALING_FIELDS = {"scl_slope", "scl_inter"}
SCALING_BYTES = range(112, 120)  # of these fields
SAME_SIZE_TYPE = {"datatype"}


OFFSET_OF_DICOM_PIXELS = min(encode(ds).index(b"\xe0\x7f\x10\x00") for ds in make_series())
"""First byte of the element Pixel Data in the files that are made here."""


def nifti_image() -> nib.Nifti1Image:
    """Return an asymmetric image on an oblique grid, with sform and qform."""
    rng = np.random.default_rng(1)
    voxels = rng.integers(0, 1000, SHAPE).astype(np.int16)
    angle = 0.2
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = rotation @ affine
    affine[:3, 3] = (-20, -30, 5)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image


def write_image(ending: str) -> Callable[[Path], None]:
    """Return a function that writes the image with a file name ending, in the format of that ending."""

    def make(folder: Path) -> None:
        nib.save(nifti_image(), folder / f"{NAME}{ending}")

    return make


def write_with_itk(ending: str) -> Callable[[Path], None]:
    """Return a function that writes the image, compressed, in a format of ITK."""

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as other:
            source = Path(other, "scan.nii")
            nib.save(nifti_image(), source)
            SimpleITK.WriteImage(SimpleITK.ReadImage(source), folder / f"{NAME}{ending}", useCompression=True)

    return make


def write_zipped_nifti(folder: Path) -> None:
    """Write a zip with one NIfTI file."""
    with zipfile.ZipFile(folder / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAME}.nii", nifti_image().to_bytes())


def write_ct(folder: Path) -> None:
    """Write a CT series of six files."""
    write_series(folder / "series", make_series(modality="CT"))


def write_mr_without_endings(folder: Path) -> None:
    """Write an MR series whose files have no ending."""
    series = folder / "series"
    series.mkdir()
    for index, ds in enumerate(make_series()):
        (series / f"IM{index:04d}").write_bytes(encode(ds))


def write_zipped_dicom(folder: Path) -> None:
    """Write a zip with a CT series."""
    with zipfile.ZipFile(folder / "export.zip", "w", zipfile.ZIP_STORED) as archive:
        for index, ds in enumerate(make_series(modality="CT")):
            archive.writestr(f"export/IM{index:04d}", encode(ds))


def no_explanation(path: Path, mutation: Mutation) -> str:
    """Say that every change can be noticed."""
    return ""


def explain_plain_nifti(path: Path, mutation: Mutation) -> str:
    """Say what an uncompressed NIfTI file cannot show."""
    if mutation.offset is not None and mutation.offset >= HEADER_BYTES:
        return "voxels of an uncompressed file have no checksum"
    return explain_nifti_header(path, mutation)


def explain_dicom(path: Path, mutation: Mutation) -> str:
    """Say what an uncompressed DICOM file cannot show."""
    in_pixels = mutation.offset is not None and mutation.offset >= OFFSET_OF_DICOM_PIXELS
    if in_pixels or mutation.field == "PixelData":
        return "pixels of an uncompressed file have no checksum"
    return ""


def explain_pair(path: Path, mutation: Mutation) -> str:
    """Say what a pair of header and voxels cannot show."""
    if path.suffix == ".img":
        return "voxels of an uncompressed file have no checksum"
    return explain_nifti_header(path, mutation)


def is_compressed(path: Path) -> bool:
    """Return whether the bytes of a file are not those of the header."""
    return path.suffix == ".gz"


def explain_nifti_header(path: Path, mutation: Mutation) -> str:
    """Say which other header is as valid as the one before."""
    is_scaling = mutation.offset is not None and mutation.offset in SCALING_BYTES and not is_compressed(path)
    if is_scaling or mutation.field in SCALING_FIELDS:
        return "another valid scaling"
    if mutation.field in SAME_SIZE_TYPE:
        return "another type of the same size"
    return ""


def write_manifest(folder: Path) -> None:
    """Write a manifest of one scan, with every column."""
    write_image(".nii.gz")(folder)
    columns = "path,subject,session,modality,group,split,age,sex"
    (folder / "manifest.csv").write_text(f"{columns}\n{NAME}.nii.gz,sub-01,ses-1,T1w,healthy,train,63.5,F\n")


def write_bids(folder: Path) -> None:
    """Write a BIDS data set of one subject."""
    anat = folder / "sub-01" / "anat"
    anat.mkdir(parents=True)
    write_image(".nii.gz")(anat)
    (folder / "participants.tsv").write_text("participant_id\tage\tsex\tgroup\nsub-01\t63.5\tF\tcontrol\n")


def mutate_table(path: Path, rng: Rng) -> Mutation:
    """Change bytes of the table beside a scan, whichever file was chosen."""
    root = next(parent for parent in path.parents if any(parent.glob("*.?sv")))
    return mutate_bytes(next(root.glob("*.?sv")), rng)


BYTES_AND_HEADER = (mutate_bytes, mutate_nifti_header)
BYTES_AND_ELEMENTS = (mutate_bytes, mutate_dicom_element)
TARGETS = (
    Target("NIfTI", write_image(".nii"), BYTES_AND_HEADER, explain_plain_nifti),
    Target("NIfTI, compressed", write_image(".nii.gz"), BYTES_AND_HEADER, explain_nifti_header),
    Target("NIfTI pair", write_image(".img"), (mutate_bytes,), explain_pair),
    Target("FreeSurfer, compressed", write_image(".mgz"), (mutate_bytes,), no_explanation),
    Target("NRRD, compressed", write_with_itk(".nrrd"), (mutate_bytes,), no_explanation),
    Target("MetaImage, compressed", write_with_itk(".mha"), (mutate_bytes,), no_explanation),
    Target("NIfTI in a zip", write_zipped_nifti, (mutate_bytes,), no_explanation),
    Target("DICOM CT", write_ct, BYTES_AND_ELEMENTS, explain_dicom),
    Target("DICOM MR without endings", write_mr_without_endings, BYTES_AND_ELEMENTS, explain_dicom),
    Target("DICOM in a zip", write_zipped_dicom, (mutate_bytes,), no_explanation),
    Target("manifest.csv", write_manifest, (mutate_table,), no_explanation, "manifest.csv"),
    Target("participants.tsv", write_bids, (mutate_table,), no_explanation),
)
