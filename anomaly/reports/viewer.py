"""The interactive viewer: nilearn's ``view_img`` as one self-contained HTML document for an inline frame."""

from __future__ import annotations

import json
import re
import warnings

import nibabel as nib
import numpy as np
from nilearn import plotting
from nilearn.image import resample_img

from anomaly.core.scan_result import TemplateVolumes
from anomaly.core.volume import FloatArray
from anomaly.reports.panels import EVIDENCE_COLOURS
from anomaly.runs.reader import Display

# nilearn's document refers to a favicon and to project pages on the web; a report must not load or link anything.
_LINKS = re.compile(r'<link rel="icon"[^>]*>|<footer style="display: none">.*?</footer>', re.DOTALL)
_RANDOM_ID = re.compile(r"-[0-9a-f]{32}\b")  # removed, so that the same scan gives the same page
_PARAMETERS = re.compile(r"brainsprite\((\{.*\})\);")
_STYLE = """<style>
body{margin:0;background:#000;color:#e8e6e3;font:13px system-ui,sans-serif}
#div_viewer canvas{cursor:crosshair}p{margin:4px 0 4px 8px}.slider{width:180px}
</style>"""


def viewer_html(
    volumes: TemplateVolumes,
    display: Display,
    point_mm: tuple[float, float, float],
    spacing_mm: float = 3.0,
    width_px: int = 900,
) -> tuple[str, int]:
    """Return an HTML document that shows the evidence over the scan, and its height in pixels.

    Parameters
    ----------
    volumes
        The scan on the template grid.
    display
        Display scales of the run; evidence below the voxel threshold is not drawn.
    point_mm
        Initial intersection of the planes, MNI152 RAS millimetres.
    spacing_mm
        Finer volumes are resampled to this spacing, to keep the page small.
    width_px
        Width of the viewer in pixels.
    """
    scan = _resampled(np.clip(volumes.scan, display.intensity_min, display.intensity_max), volumes, spacing_mm)
    evidence = _resampled(np.clip(volumes.evidence, 0, display.evidence_max), volumes, spacing_mm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between nilearn and matplotlib
        view = plotting.view_img(
            evidence,
            bg_img=scan,
            cut_coords=point_mm,
            threshold=display.voxel_threshold or 0.5 * display.evidence_max,
            cmap=EVIDENCE_COLOURS,
            symmetric_cmap=False,
            vmin=0,
            vmax=display.evidence_max,
            black_bg=True,
            dim=0,
            opacity=0.85,
            radiological=True,
            resampling_interpolation="nearest",
            width_view=width_px,
            title="",
        )
    document = _RANDOM_ID.sub("", _LINKS.sub("", view.html)).replace("</head>", _STYLE + "</head>", 1)
    return _PARAMETERS.sub(lambda found: _corrected(found, scan, point_mm), document, count=1), round(
        0.88 * view.height
    )  # nilearn reserves space for a title


def _corrected(found: re.Match[str], image: nib.Nifti1Image, point_mm: tuple[float, float, float]) -> str:
    """Correct the position of the crosshair and the printed millimetres in the viewer's parameters.

    nilearn mirrors the images for the radiological convention, but not the crosshair and not the sign of x. Its
    script counts slices from 1 when it prints millimetres, and from 0 when it draws.
    """
    affine = np.array(image.affine)
    affine[:3, 3] += affine[:3, 0] * (image.shape[0] - 1)
    affine[:3, 0] *= -1
    index = np.linalg.inv(affine)[:3] @ [*point_mm, 1.0]
    index = np.clip(np.round(index), 0, np.array(image.shape) - 1)
    affine[:3, 3] -= affine[:3, :3].sum(axis=1)
    parameters = json.loads(found.group(1)) | {
        "affine": affine.tolist(),
        "numSlice": dict(zip("XYZ", index.tolist(), strict=True)),
        "flagValue": True,
        "colorCrosshair": "rgba(77,225,255,0.5)",
        "sizeFont": 0.05,
        "colorFont": "#e8e6e3",
    }
    return f"brainsprite({json.dumps(parameters)});"


def _resampled(values: FloatArray, volumes: TemplateVolumes, spacing_mm: float) -> nib.Nifti1Image:
    affine = np.array(volumes.geometry.affine)
    image = nib.Nifti1Image(np.asarray(values, dtype=np.float32), affine)
    if min(volumes.geometry.spacing) >= spacing_mm:
        return image
    shape = np.ceil(np.array(volumes.geometry.extent_mm) / spacing_mm).astype(int)
    target = np.diag([spacing_mm] * 3 + [1.0])
    target[:3, 3] = affine[:3, 3]
    resampled: nib.Nifti1Image = resample_img(
        image,
        target_affine=target,
        target_shape=shape,
        interpolation="linear",
        force_resample=True,
        copy_header=True,
    )
    return resampled
