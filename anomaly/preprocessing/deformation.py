"""How much the tissue of a brain takes up more space than in a reference brain, by non-linear registration.

After affine alignment, a smooth displacement u is fitted that carries each point x of the scan to the point
x + u(x) of the reference image with the same tissue. The Jacobian determinant of x ↦ x + u(x) is the volume that a
small piece of the scan has in the reference:

    growth(x) = −ln det(I + ∇u(x))        0 = as in the reference, ln 2 = twice the volume, −ln 2 = half

A tumour displaces the tissue around it and takes up space; atrophy enlarges the ventricles. Growth is given at the
position in the scan: given at that in the reference, it would lie beside a lesion that displaces tissue.

Method: demons with symmetric forces on a pyramid of two grids. Sources: Thirion 1998, "Image matching as a
diffusion process", Medical Image Analysis 2:243; Vercauteren et al. 2009, "Diffeomorphic demons", NeuroImage 45:S61
(symmetric forces); Ashburner et al. 1998, "Identifying global anatomical differences", Human Brain Mapping 6:348
(the Jacobian determinant as local volume).
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention

from anomaly.core.volume import FloatArray, Geometry
from anomaly.preprocessing.affine_fit import from_itk, single_threaded, to_itk
from anomaly.preprocessing.grid import resample, world_grid

LEVELS_MM = {8.0: 30, 4.0: 20}
"""Voxel size of each level of the pyramid, coarse to fine → number of iterations."""

FIELD_SD_VOXELS = 1.5  # SD of the Gaussian that smooths the displacement after each iteration
UPDATE_SD_VOXELS = 1.0  # SD of the Gaussian that smooths the change of each iteration
MAX_STEP_VOXELS = 2.0  # longest change of each iteration
DETERMINANT_RANGE = (0.05, 20.0)  # determinants outside are taken for the nearest of these


def local_growth(scan: FloatArray, reference: FloatArray, grid: Geometry) -> FloatArray:
    """Compute the local growth of a scan against a reference image of the same contrast.

    Parameters
    ----------
    scan, reference
        float32 ``(I, J, K)`` on ``grid``, affinely aligned, on one intensity scale, 0 outside the brain.
    grid
        Their grid, axes along RAS+.

    Returns
    -------
    ndarray
        float32 ``(I, J, K)``: the natural logarithm of the volume that the tissue takes up in the scan over its
        volume in the reference; smooth on a scale of some 10 mm.
    """
    with single_threaded():
        displacement: sitk.Image | None = None
        for spacing_mm, iterations in LEVELS_MM.items():
            level = world_grid(grid, max(spacing_mm, *grid.spacing), margin_mm=0)
            fixed, moving = (to_itk(resample(image, grid, level), level) for image in (scan, reference))
            displacement = _demons(fixed, moving, iterations, displacement)
        determinant = sitk.DisplacementFieldJacobianDeterminant(displacement)
        on_grid = sitk.Resample(determinant, to_itk(scan, grid), sitk.Transform(), sitk.sitkLinear, 1.0)
    return np.asarray(-np.log(np.clip(from_itk(on_grid), *DETERMINANT_RANGE)), dtype=np.float32)


def _demons(fixed: sitk.Image, moving: sitk.Image, iterations: int, start: sitk.Image | None) -> sitk.Image:
    """Fit the displacement field from ``fixed`` to ``moving``, starting from that of a coarser level."""
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(iterations)
    method.SetSmoothDisplacementField(True)
    method.SetStandardDeviations(FIELD_SD_VOXELS)
    method.SetSmoothUpdateField(True)
    method.SetUpdateFieldStandardDeviations(UPDATE_SD_VOXELS)
    method.SetMaximumUpdateStepLength(MAX_STEP_VOXELS)
    initial = () if start is None else (sitk.Resample(start, fixed),)
    displacement: sitk.Image = method.Execute(fixed, moving, *initial)
    return displacement
