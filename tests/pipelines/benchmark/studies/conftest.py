from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.pipelines.cohorts import GRID

SHAPE_CENTRES = [(6, 9, 7), (10, 8, 7)]


@pytest.fixture(scope="session")
def lesion_shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the masks of two spherical lesions."""
    folder = tmp_path_factory.mktemp("shapes")
    for n, centre in enumerate(SHAPE_CENTRES):
        distance = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - centre, axis=-1)
        nib.save(nib.Nifti1Image((distance < 2.5).astype(np.uint8), GRID.affine), folder / f"{n}.nii.gz")
    return folder
