"""Read a NRRD image (``.nrrd``, ``.nhdr`` with its data file). Format: https://teem.sourceforge.net/nrrd/format.html."""

from __future__ import annotations

import re

import numpy as np

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, Modality, Volume
from anomaly.io.file_types import CONVERT_REMEDY
from anomaly.io.stored_file import StoredFile, unreadable_error
from anomaly.io.text_header import (
    TextFormat,
    TextHeader,
    data_file_name,
    make_affine,
    parse_numbers,
    read_text_image,
)
from anomaly.io.volume_checks import check_shape, missing_geometry_error

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_TYPE_BY_NAME = {name: code for code, names in _TYPES.items() for name in names}
_SPACES = {
    "right-anterior-superior": "RAS", "ras": "RAS",
    "left-posterior-superior": "LPS", "lps": "LPS",
    "left-anterior-superior": "LAS", "las": "LAS",
}  # fmt: skip
_BYTE_ORDERS = {"little": "<", "big": ">"}


def read_nrrd(file: StoredFile, scan_id: str | None = None, modality: Modality = Modality.UNKNOWN) -> Volume:
    """Read one scan; see :func:`anomaly.io.text_header.read_text_image`."""
    return read_text_image(file, NRRD, scan_id, modality)


def parse_nrrd_header(text: str) -> TextHeader:
    """Parse the header of a NRRD image."""
    fields = _fields(text)
    if "datafile" not in fields and not text.endswith("\n\n"):
        raise ValueError("it does not end")
    sizes = [int(part) for part in fields["sizes"].split()]
    if len(sizes) != int(fields["dimension"]):
        raise ValueError("dimension and sizes differ")
    shape = check_shape(sizes)
    if len(sizes) != 3:
        raise ScanRefusedError("not_3d", f"an image with {len(sizes)} axes", "one 3D volume", CONVERT_REMEDY)
    if int(fields.get("lineskip", "0")) != 0 or fields["encoding"].lower() not in {"raw", "gzip", "gz"}:
        raise unreadable_error(f"NRRD voxels as {fields['encoding']}", "raw or gzip", CONVERT_REMEDY)
    code = _TYPE_BY_NAME.get(fields["type"].lower())
    if code is None:
        raise unreadable_error(f"the NRRD type {fields['type']!r}", "a number", CONVERT_REMEDY)
    byte_order = _BYTE_ORDERS[fields["endian"].lower()] if code[1] != "1" else "|"
    data_file = fields.get("datafile", "")
    return TextHeader(
        shape,
        np.dtype(byte_order + code),
        _affine(fields),
        is_compressed=fields["encoding"].lower() != "raw",
        data_file=data_file_name(data_file) if data_file else "",
        n_skipped=int(fields.get("byteskip", "0")),
    )


def _fields(text: str) -> dict[str, str]:
    """Return field → value; the names of fields are compared without spaces and in lower case."""
    fields: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if not colon or line.startswith("#") or value.startswith("="):
            continue
        key = name.replace(" ", "").lower()
        if fields.setdefault(key, value.strip()) != value.strip():
            raise ValueError(f"the field {name!r} twice")
    return fields


def _affine(fields: dict[str, str]) -> AffineArray:
    axes = _SPACES.get(fields.get("space", "").lower())
    if axes is None or "spacedirections" not in fields or "spaceorigin" not in fields:
        raise missing_geometry_error("a NRRD header without anatomical space, space directions or space origin",
                                     "a header with all three")  # fmt: skip
    units = {unit.strip('"').lower() for unit in re.findall(r'"[^"]*"', fields.get("spaceunits", ""))}
    if not units <= {"mm", "millimeter", "millimeters", "millimetre", ""}:
        raise unreadable_error("a NRRD header in " + ", ".join(sorted(units)), "millimetres", CONVERT_REMEDY)
    vectors = re.findall(r"\(([^)]*)\)", fields["spacedirections"])
    directions = np.array([parse_numbers(vector.replace(",", " "), 3) for vector in vectors])
    if directions.shape != (3, 3):
        raise ValueError("space directions")
    origin = parse_numbers(fields["spaceorigin"].strip("()").replace(",", " "), 3)
    return make_affine(directions, origin, axes)


NRRD = TextFormat(
    "a NRRD image", re.compile(rb"NRRD000[1-5]\r?\n"), re.compile(rb"\r?\n\r?\n|\Z"), parse_nrrd_header
)
