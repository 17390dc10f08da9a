"""Read a FreeSurfer volume (``.mgh``, compressed ``.mgz``). Format: https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer.mghformat import MGHHeader

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality, Volume
from anomaly.io.file_types import READ_ENDINGS, ImageFormat, ending_of, image_stem
from anomaly.io.image_stream import foreign_content_error, open_image
from anomaly.io.stored_file import StoredFile, unreadable_error
from anomaly.io.volume_checks import check_shape, make_volume, missing_geometry_error

_N_HEADER_BYTES = 284
_UNUSED = slice(90, _N_HEADER_BYTES)  # bytes of the header that are zero
_FOOTER_BYTES = (0, 16, 20)  # four or five scan parameters may follow the voxels
_MIN_TAGGED_FOOTER_BYTES = 24  # command lines and colour tables may follow those
_MAX_FOOTER_BYTES = 1 << 20
_UNIT_TOLERANCE = 1e-2
_VERSION = 1
_DATA_TYPES = {0: "unsigned 8-bit", 1: "32-bit", 3: "float", 4: "16-bit", 10: "unsigned 16-bit"}

_LABEL_MAP_NAME = re.compile(
    r"aseg|aparc|wmparc|ribbon|labels|nuclei|ctrl_pts|defects|^(wm|filled|entowm)([.-]|$)", re.IGNORECASE
)


def is_freesurfer_label_map(name: str) -> bool:
    """Return whether a file name is that of a label map in the ``mri`` folder of a FreeSurfer subject."""
    is_mgh = READ_ENDINGS.get(ending_of(name)) is ImageFormat.MGH
    return is_mgh and _LABEL_MAP_NAME.search(image_stem(name)) is not None


def read_mgh(file: StoredFile, scan_id: str | None = None, modality: Modality = Modality.UNKNOWN) -> Volume:
    """Read one scan.

    Raises
    ------
    ScanRefusedError
        If the file is damaged, not 3D, not finite or constant, or its geometry is missing or implausible.
    """
    with open_image(file) as stream:
        header = _parse_header(stream.start)
        shape = check_shape(_sizes(header))
        n_voxel_bytes = int(np.prod(shape)) * header.get_data_dtype().itemsize
        content = stream.read(_N_HEADER_BYTES + n_voxel_bytes, _MAX_FOOTER_BYTES)
    _check_footer(len(content) - _N_HEADER_BYTES - n_voxel_bytes)
    voxels = np.asarray(ArrayProxy(io.BytesIO(content), header), dtype=np.float32).reshape(shape, order="A")
    return make_volume(voxels, header.get_affine(), scan_id or image_stem(file.name), modality)


def _parse_header(start: bytes) -> MGHHeader:
    if start[:4] != struct.pack(">i", _VERSION) or len(start) < _N_HEADER_BYTES:
        raise foreign_content_error(start, "a FreeSurfer volume")
    data_type, _, has_geometry = struct.unpack(">iih", start[20:30])
    if data_type not in _DATA_TYPES:
        raise unreadable_error(f"the data type {data_type}", "one of " + ", ".join(map(str, _DATA_TYPES)))
    if has_geometry != 1:
        raise missing_geometry_error(
            "a FreeSurfer volume without geometry (goodRASFlag)", "a header with an affine"
        )
    if any(start[_UNUSED]):
        raise unreadable_error("a FreeSurfer header with content where it has none", "zero bytes")
    header = MGHHeader(start[:_N_HEADER_BYTES], check=False)
    lengths = np.linalg.norm(np.array(header["Mdc"], dtype=np.float64), axis=1)
    if not np.allclose(lengths, 1, atol=_UNIT_TOLERANCE):
        raise ScanRefusedError("absurd_geometry", "directions that are not of length 1", "unit vectors",
                               "convert the scan again from its DICOM files")  # fmt: skip
    return header


def _check_footer(n_bytes: int) -> None:
    if n_bytes not in _FOOTER_BYTES and n_bytes < _MIN_TAGGED_FOOTER_BYTES:
        raise unreadable_error(f"{n_bytes} bytes after the voxels", "the scan parameters of FreeSurfer, or nothing")


def _sizes(header: MGHHeader) -> list[int]:
    sizes = [int(n) for n in header["dims"]]
    if min(sizes) < 1:
        raise ScanRefusedError("not_3d", "an image of shape " + " × ".join(map(str, sizes)), "one 3D volume",
                               "convert the scan again from its DICOM files")  # fmt: skip
    return sizes
