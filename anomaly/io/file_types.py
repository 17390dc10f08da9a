"""What a file is, by the ending of its name and by its first bytes: the one table of both."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

N_START_BYTES = 1 << 16  # holds the header of every format that is read

CONVERT_REMEDY = "convert it to NIfTI (.nii.gz)"
_UNPACK_REMEDY = "unpack it and give the folder"
_DECOMPRESS_REMEDY = "decompress it, or compress it with gzip"


class ImageFormat(StrEnum):
    """A format of images that is read."""

    NIFTI = "NIfTI"
    NIFTI_PAIR = "NIfTI pair (.hdr and .img)"
    MGH = "FreeSurfer MGH"
    NRRD = "NRRD"
    METAIMAGE = "MetaImage"


@dataclass(frozen=True)
class UnreadType:
    """A kind of file that may hold a scan and is not read.

    Parameters
    ----------
    description
        What it is, one clause with its article.
    remedy
        How to make a file of it that is read.
    may_name_patient
        Whether its name may contain that of a patient, as those of DICOM files and archives do. Such a name is not
        written down.
    """

    description: str
    remedy: str
    may_name_patient: bool = False


READ_ENDINGS = {
    ".nii": ImageFormat.NIFTI, ".nii.gz": ImageFormat.NIFTI,
    ".img": ImageFormat.NIFTI_PAIR, ".img.gz": ImageFormat.NIFTI_PAIR,
    ".hdr": ImageFormat.NIFTI_PAIR, ".hdr.gz": ImageFormat.NIFTI_PAIR,
    ".mgh": ImageFormat.MGH, ".mgz": ImageFormat.MGH, ".mgh.gz": ImageFormat.MGH,
    ".nrrd": ImageFormat.NRRD, ".nhdr": ImageFormat.NRRD,
    ".mha": ImageFormat.METAIMAGE, ".mhd": ImageFormat.METAIMAGE,
}  # fmt: skip

DICOM_ENDINGS = (".dcm", ".ima", ".dicom")

_UNREAD_KINDS = {
    (".par", ".rec"): UnreadType("a Philips PAR/REC image", f"{CONVERT_REMEDY}, for example with dcm2niix"),
    (".mnc", ".minc", ".mnc.gz", ".mnc2"): UnreadType("a MINC image", f"{CONVERT_REMEDY}, with mnc2nii"),
    (".v",): UnreadType("an ECAT image", CONVERT_REMEDY),
    (".head", ".brik", ".brik.gz", ".brik.bz2"):
        UnreadType("an AFNI image", f"{CONVERT_REMEDY}, with 3dAFNItoNIFTI"),
    (".gipl", ".gipl.gz"): UnreadType("a GIPL image", CONVERT_REMEDY),
    (".vti",): UnreadType("a VTK image", CONVERT_REMEDY),
    (".fdf",): UnreadType("a Varian FDF image", CONVERT_REMEDY),
    (".raw", ".zraw", ".raw.gz"): UnreadType("voxels without a header", "give the header (.mhd, .nhdr) with it"),
    (".nii.bz2", ".nii.xz", ".nii.zst", ".nii.lz4", ".nii.z", ".nii.lzma"):
        UnreadType("a NIfTI file under another compression than gzip", _DECOMPRESS_REMEDY),
    (".nia", ".ni.gz"): UnreadType("an image under an unusual NIfTI ending", CONVERT_REMEDY),
    tuple(dicom + compressed for dicom in DICOM_ENDINGS for compressed in (".gz", ".bz2", ".xz", ".zst")):
        UnreadType("a compressed DICOM file", "decompress it", may_name_patient=True),
    (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.z"):
        UnreadType("a tar archive", _UNPACK_REMEDY, may_name_patient=True),
    (".7z",): UnreadType("a 7z archive", _UNPACK_REMEDY, may_name_patient=True),
    (".rar",): UnreadType("a RAR archive", _UNPACK_REMEDY, may_name_patient=True),
    (".iso",): UnreadType("a disc image", "copy the files from it and give the folder", may_name_patient=True),
    (".nii.part", ".nii.gz.part", ".nii.gz.crdownload", ".nii.crdownload", ".nii.gz.tmp", ".nii.tmp"):
        UnreadType("an unfinished download or copy", "copy the file again"),
    (".zip.part", ".zip.crdownload", ".dcm.part", ".dcm.crdownload"):
        UnreadType("an unfinished download or copy", "copy the file again", may_name_patient=True),
}  # fmt: skip
UNREAD_ENDINGS = {ending: kind for endings, kind in _UNREAD_KINDS.items() for ending in endings}

# The second file of a pair is no scan of its own where the first lies beside it.
FIRST_OF_PAIR = {
    ".hdr": (".img", ".img.gz"), ".hdr.gz": (".img", ".img.gz"), ".rec": (".par",),
    ".brik": (".head",), ".brik.gz": (".head",), ".brik.bz2": (".head",),
}  # fmt: skip

# Files that are no scans, and are not opened.
OTHER_ENDINGS = (
    ".json", ".tsv", ".csv", ".txt", ".md", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg",
    ".bval", ".bvec", ".py", ".yaml", ".yml", ".xml", ".npz", ".npy", ".parquet", ".safetensors", ".ckpt",
    ".gz", ".log",
)  # fmt: skip

_ALL_ENDINGS = sorted(
    {*READ_ENDINGS, *UNREAD_ENDINGS, *DICOM_ENDINGS, *OTHER_ENDINGS, ".zip"}, key=len, reverse=True
)


def ending_of(name: str) -> str:
    """Return the longest known ending of a file name, in lower case; ``""`` if there is none."""
    lower = name.lower()
    return next((ending for ending in _ALL_ENDINGS if lower.endswith(ending)), "")


def image_stem(name: str) -> str:
    """Return the name of an image without its ending; other names stay as they are."""
    ending = ending_of(name)
    return name[: -len(ending)] if ending in READ_ENDINGS or ending in UNREAD_ENDINGS else name


@dataclass(frozen=True)
class Content:
    """What a file holds, by its first bytes."""

    description: str
    remedy: str


_COPY_REMEDY = "download or copy the file again"
_SIGNATURES = (
    (b"\x1f\x8b", Content("gzip data inside gzip data", "decompress it once")),
    (b"PK\x03\x04", Content("a zip", "name the file .zip")),
    (b"BZh", Content("bzip2 data", _DECOMPRESS_REMEDY)),
    (b"\xfd7zXZ\x00", Content("xz data", _DECOMPRESS_REMEDY)),
    (b"\x28\xb5\x2f\xfd", Content("Zstandard data", _DECOMPRESS_REMEDY)),
    (b"\x04\x22\x4d\x18", Content("LZ4 data", _DECOMPRESS_REMEDY)),
    (b"7z\xbc\xaf\x27\x1c", Content("a 7z archive", _UNPACK_REMEDY)),
    (b"Rar!\x1a\x07", Content("a RAR archive", _UNPACK_REMEDY)),
    (b"\x89HDF", Content("an HDF5 or MINC file", CONVERT_REMEDY)),
    (b"CDF\x01", Content("a NetCDF or MINC file", CONVERT_REMEDY)),
    (b"NRRD", Content("a NRRD image", "name the file .nrrd")),
    (b"ObjectType", Content("a MetaImage", "name the file .mha")),
    (b"\x89PNG", Content("a PNG picture", "give the scan itself")),
    (b"\xff\xd8\xff", Content("a JPEG picture", "give the scan itself")),
    (b"%PDF", Content("a PDF document", "give the scan itself")),
    (b"version https://git-lfs.github.com/spec/",
     Content("a Git LFS pointer, without the content of the file", "run `git lfs pull` in its repository")),
)  # fmt: skip
_ANNEX_REMEDY = "run `git annex get` (or `datalad get`) on it"


def describe_content(start: bytes) -> Content | None:
    """Return what a file holds by its first :data:`N_START_BYTES`; None if they tell nothing.

    Meant for a file that is not what its name says, to say what it is instead.
    """
    if not start:
        return Content("an empty file", _COPY_REMEDY)
    for signature, content in _SIGNATURES:
        if start.startswith(signature):
            return content
    if start[128:132] == b"DICM":
        return Content("a DICOM file", "name the file .dcm")
    if start[257:262] == b"ustar":
        return Content("a tar archive", _UNPACK_REMEDY)
    return _describe_text(start)


def _describe_text(start: bytes) -> Content | None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"annex/objects/" in start:
        return Content("a git-annex pointer, without the content of the file", _ANNEX_REMEDY)
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return Content("an HTML page, such as the error page of a download", _COPY_REMEDY)
    if text.startswith((b"<?xml", b"{", b"[")):
        return Content("an XML or JSON text, such as the error of a download", _COPY_REMEDY)
    if not any(start):
        return Content("zero bytes only, as after an interrupted copy", _COPY_REMEDY)
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return Content("a text", "give the scan itself")
    return None
