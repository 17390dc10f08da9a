"""Read an image file of any format that is read."""

from __future__ import annotations

from collections.abc import Callable

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality, Volume
from anomaly.io.file_types import READ_ENDINGS, ImageFormat, ending_of
from anomaly.io.freesurfer import read_mgh
from anomaly.io.metaimage import METAIMAGE, read_metaimage
from anomaly.io.nifti import pair_of, read_nifti
from anomaly.io.nrrd import NRRD, read_nrrd
from anomaly.io.stored_file import StoredFile
from anomaly.io.text_header import data_file_of

_READERS: dict[ImageFormat, Callable[[StoredFile, str | None, Modality], Volume]] = {
    ImageFormat.NIFTI: read_nifti,
    ImageFormat.NIFTI_PAIR: read_nifti,
    ImageFormat.MGH: read_mgh,
    ImageFormat.NRRD: read_nrrd,
    ImageFormat.METAIMAGE: read_metaimage,
}
_TEXT_FORMATS = {ImageFormat.NRRD: NRRD, ImageFormat.METAIMAGE: METAIMAGE}


def read_image(file: StoredFile, scan_id: str | None = None, modality: Modality = Modality.UNKNOWN) -> Volume:
    """Read one scan; the format is told by the ending of its name.

    Raises
    ------
    ScanRefusedError
        If the scan must not be used.
    """
    return _READERS[READ_ENDINGS[ending_of(file.name)]](file, scan_id, modality)


def files_of(file: StoredFile) -> tuple[StoredFile, ...]:
    """Return the files of an image: itself first, then the file of its header or voxels if there is one."""
    image_format = READ_ENDINGS.get(ending_of(file.name))
    if image_format is ImageFormat.NIFTI_PAIR:
        try:
            return file, *(other for other in pair_of(file) if other != file)
        except ScanRefusedError:  # it is refused by the same error when it is read
            return (file,)
    if image_format in _TEXT_FORMATS:
        other = data_file_of(file, _TEXT_FORMATS[image_format])
        return (file, other) if other else (file,)
    return (file,)
