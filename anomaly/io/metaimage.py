"""Read a MetaImage (``.mha``, ``.mhd`` with its data file). Format: https://itk.org/Wiki/ITK/MetaIO/Documentation."""

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
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_ALIASES = {
    "elementsize": "elementspacing", "position": "offset", "origin": "offset",
    "rotation": "transformmatrix", "orientation": "transformmatrix",
    "elementbyteordermsb": "binarydatabyteordermsb",
}  # fmt: skip
_ROTATION_TOLERANCE = 1e-2


def read_metaimage(file: StoredFile, scan_id: str | None = None, modality: Modality = Modality.UNKNOWN) -> Volume:
    """Read one scan; see :func:`anomaly.io.text_header.read_text_image`."""
    return read_text_image(file, METAIMAGE, scan_id, modality)


def parse_metaimage_header(text: str) -> TextHeader:
    """Parse the header of a MetaImage."""
    fields = _fields(text)
    if fields.get("elementnumberofchannels", "1") != "1" or fields["elementtype"].endswith("_ARRAY"):
        raise ScanRefusedError("not_scalar", "an image of several channels", "one number per voxel",
                               "give the scan itself, not a rendered image of it")  # fmt: skip
    if fields["elementtype"] not in _TYPES or not _flag(fields, "binarydata", default=True):
        raise unreadable_error(f"MetaImage voxels as {fields['elementtype']} or as text", "binary numbers",
                               CONVERT_REMEDY)  # fmt: skip
    sizes = [int(part) for part in fields["dimsize"].split()]
    if len(sizes) != int(fields["ndims"]):
        raise ValueError("NDims and DimSize differ")
    shape = check_shape(sizes)
    if len(sizes) != 3:
        raise ScanRefusedError("not_3d", f"an image with {len(sizes)} axes", "one 3D volume", CONVERT_REMEDY)
    byte_order = ">" if _flag(fields, "binarydatabyteordermsb", default=False) else "<"
    data_file = fields["elementdatafile"]
    n_compressed = fields.get("compresseddatasize")
    return TextHeader(
        shape,
        np.dtype(byte_order + _TYPES[fields["elementtype"]]),
        _affine(fields),
        is_compressed=_flag(fields, "compresseddata", default=False),
        data_file="" if data_file.upper() == "LOCAL" else data_file_name(data_file),
        n_skipped=int(fields.get("headersize", "0")),
        n_compressed=int(n_compressed) if n_compressed else None,
    )


def _fields(text: str) -> dict[str, str]:
    """Return field → value, by one name where a field has several."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals:
            continue
        key = name.strip().lower()
        key = _ALIASES.get(key, key)
        if fields.setdefault(key, value.strip()) != value.strip():
            raise ValueError(f"the field {name.strip()!r} twice")
    return fields


def _flag(fields: dict[str, str], name: str, *, default: bool) -> bool:
    return fields[name].lower() in {"true", "1"} if name in fields else default


def _affine(fields: dict[str, str]) -> AffineArray:
    """Return the affine. The matrix names the directions of I, J and K in LPS, one after the other."""
    if not {"transformmatrix", "offset", "elementspacing"} <= fields.keys():
        raise missing_geometry_error("a MetaImage without TransformMatrix, Offset or ElementSpacing",
                                     "a header with all three")  # fmt: skip
    directions = np.array(parse_numbers(fields["transformmatrix"], 9)).reshape(3, 3)
    if not np.allclose(directions @ directions.T, np.eye(3), atol=_ROTATION_TOLERANCE):
        raise ValueError("TransformMatrix is not a rotation")
    spacing = np.array(parse_numbers(fields["elementspacing"], 3))
    return make_affine(directions * spacing[:, None], parse_numbers(fields["offset"], 3), "LPS")


METAIMAGE = TextFormat(
    "a MetaImage",
    re.compile(rb"\s*(ObjectType|NDims)\s*="),
    re.compile(rb"(?m)^ElementDataFile\s*=[^\n]*(\n|\Z)"),
    parse_metaimage_header,
)
