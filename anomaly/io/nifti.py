"""Read a NIfTI file, or a NIfTI pair, as a volume. :mod:`anomaly.export.nifti` writes files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy

from anomaly.core.volume import FloatArray, Geometry, Modality, Volume
from anomaly.io.file_types import READ_ENDINGS, ImageFormat, ending_of, image_stem
from anomaly.io.image_stream import ImageStream, open_image
from anomaly.io.nifti_header import NiftiHeader, check_fields, parse_header, read_affine
from anomaly.io.stored_file import StoredFile, unreadable_error
from anomaly.io.volume_checks import make_volume


def read_nifti(
    file: Path | StoredFile, scan_id: str | None = None, modality: Modality = Modality.UNKNOWN
) -> Volume:
    """Read one scan.

    Parameters
    ----------
    file
        ``.nii`` or ``.nii.gz``, or one file of a pair ``.hdr`` and ``.img``, on disk or in a zip.
    scan_id
        Name of the scan; by default the file's name without its ending.
    modality
        Modality of the scan.

    Returns
    -------
    Volume
        float32 ``(I, J, K)`` with the file's scaling applied. The geometry is that of the sform or, if there is
        none, of the qform. The warnings name fields of the header that contradict each other.

    Raises
    ------
    ScanRefusedError
        If the file is damaged, longer or shorter than its header says, not 3D, not finite or constant, or its
        geometry is missing, implausible or contradictory.
    """
    stored = file if isinstance(file, StoredFile) else StoredFile(file)
    with _open_nifti(stored) as (header, stream):
        affine = read_affine(header)
        warnings = check_fields(header, affine)
        voxels = _read_voxels(header, stream)
    return make_volume(voxels, affine, scan_id or image_stem(stored.name), modality, warnings)


def read_geometry(path: Path) -> Geometry:
    """Read the grid of a NIfTI file, without its voxels."""
    with _open_nifti(StoredFile(path)) as (header, _):
        return Geometry(header.shape, read_affine(header))


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a mask ``(I, J, K)``: True where the file is above zero. A mask may be empty."""
    with _open_nifti(StoredFile(path)) as (header, stream):
        return _read_voxels(header, stream) > 0


def pair_of(file: StoredFile) -> tuple[StoredFile, StoredFile]:
    """Return the header and the image file of a pair, given one of them.

    The other file ends in lower or upper case, compressed or not, as the given one does where that exists.
    """
    ending = ending_of(file.name)
    stem, own = file.name[: -len(ending)], file.name[-len(ending) :]
    kind = ".img" if ending.startswith(".hdr") else ".hdr"
    endings = [kind.upper() if own.isupper() else kind]
    names = [end + gz for end in dict.fromkeys([*endings, kind, kind.upper()]) for gz in (own[4:], "", ".gz")]
    candidates = [file.sibling(stem + name) for name in dict.fromkeys(names)]
    other = next((c for c in candidates if c.exists()), None)
    if other is None:
        raise unreadable_error(f"a {ending[:4]} file without its {kind} file", "both files of the pair",
                               "copy both files into one folder")  # fmt: skip
    return (other, file) if kind == ".hdr" else (file, other)


@contextmanager
def _open_nifti(file: StoredFile) -> Iterator[tuple[NiftiHeader, ImageStream]]:
    """Open a file or pair; give its header and the file of its voxels."""
    if READ_ENDINGS.get(ending_of(file.name)) is not ImageFormat.NIFTI_PAIR:
        with open_image(file) as stream:
            yield parse_header(stream.start), stream
        return
    header_file, image_file = pair_of(file)
    with open_image(header_file) as stream:
        header = parse_header(stream.start, is_pair=True)
    with open_image(image_file) as stream:
        yield header, stream


def _read_voxels(header: NiftiHeader, stream: ImageStream) -> FloatArray:
    content = stream.read(header.vox_offset + header.n_voxel_bytes)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite, and are refused
        values = np.asarray(ArrayProxy(io.BytesIO(content), header.fields), dtype=np.float32)
    return values.reshape(header.shape, order="A")
