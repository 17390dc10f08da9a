"""A saved model with one of its calibrations: the code path by which every scan is scored.

``anomaly score``, ``anomaly calibrate`` and a notebook go through the same steps:

    prepare       read and check the scan, bring it onto the template grid      :class:`TemplateScan`
    infer         run the networks, or refuse the scan                          :class:`InferredScan`
    postprocess   filter and standardise the maps, compute scan scores          :class:`ScoredVolume`
    to_result     back to the scan's own grid, regions, p-values and flag       :class:`ScanResult`

:meth:`Model.score` runs all of them. The steps are separate so that the networks can work on the next scan while
the files of the last one are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from anomaly.bundle.ensemble import open_bundle
from anomaly.bundle.shipped import find_model
from anomaly.bundle.store import Bundle
from anomaly.calibration import record as calibrations
from anomaly.calibration.record import Calibration
from anomaly.core.errors import ConfigError
from anomaly.core.scan_result import ScanResult, TemplateVolumes
from anomaly.core.volume import Volume
from anomaly.inference.scan_warnings import model_notices, model_warnings
from anomaly.inference.template_scan import TemplateScan, prepare_file, prepare_volume
from anomaly.models.device import choose_device
from anomaly.preprocessing.chain import Chain
from anomaly.scoring.native_space import NativeResult, in_scan_space
from anomaly.scoring.scorer import ScoredVolume


@dataclass(frozen=True, eq=False)
class InferredScan:
    """A scan and what the networks computed for it.

    Parameters
    ----------
    raw
        What ``bundle.scorer.infer`` returned.
    seconds
        Time the networks took.
    """

    scan: TemplateScan
    raw: Any
    seconds: float


@dataclass(frozen=True, eq=False)
class Model:
    """A saved model, ready to score scans.

    Parameters
    ----------
    bundle
        The model: one that was trained, or an ensemble.
    calibration
        What p-values and flags come from; None for scores and maps alone.
    """

    bundle: Bundle
    calibration: Calibration | None = None

    @property
    def model_id(self) -> str:
        """Twelve hex digits that name exactly these weights, references and settings."""
        return self.bundle.model_id

    @property
    def calibration_id(self) -> str:
        """Id of the calibration; ``""`` for none."""
        return "" if self.calibration is None else self.calibration.record.calibration_id

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of any result must know: for example, that the calibration is for another scanner."""
        return model_notices(self.bundle.metadata, None if self.calibration is None else self.calibration.record)

    def score(self, scan: str | Path | Volume, *, age: float | None = None, sex: str = "") -> ScanResult:
        """Score one scan.

        Parameters
        ----------
        scan
            A path as for :func:`load_scan`, or a scan that is already loaded.
        age, sex
            Age in years and sex (``"F"`` or ``"M"``) of the subject, for conditional models. By default they are
            what the files say: the DICOM header or ``participants.tsv``.

        Raises
        ------
        InputError
            There is nothing at the path, or not exactly one scan.
        ScanRefusedError
            The scan must not be scored; ``found``, ``expected`` and ``remedy`` say why and what to do.
        """
        prepared = self.prepare(scan, age=age, sex=sex)
        return self.to_result(prepared, self.postprocess(self.infer(prepared)))

    def prepare(self, scan: str | Path | Volume, *, age: float | None = None, sex: str = "") -> TemplateScan:
        """Check a scan and bring it onto the template grid; parameters and errors as for :meth:`score`."""
        chain = Chain(self.bundle.config.preprocessing)
        return (
            prepare_volume(scan, chain, age, sex)
            if isinstance(scan, Volume)
            else prepare_file(scan, chain, age, sex)
        )

    def infer(self, scan: TemplateScan) -> InferredScan:
        """Run the networks on a prepared scan.

        Raises
        ------
        ScanRefusedError
            The scan does not resemble the scans that the model was trained on.
        """
        began = perf_counter()
        raw = self.bundle.scorer.infer(scan.voxels, scan.mask, scan.covariates)
        return InferredScan(scan, raw, perf_counter() - began)

    def postprocess(self, inferred: InferredScan) -> ScoredVolume:
        """Compute the evidence map and the scan scores on the template grid."""
        return self.bundle.scorer.postprocess(inferred.raw, inferred.scan.voxels, inferred.scan.mask)

    def to_result(self, scan: TemplateScan, scored: ScoredVolume) -> ScanResult:
        """Resample the maps to the scan's own grid, list the regions, and apply the calibration."""
        settings = self.bundle.config.scoring
        native = self._in_scan_space(scan, scored)
        return ScanResult(
            scan_id=scan.scan_id,
            score_name=settings.scan_score,
            scores=scored.scores,
            evidence=native.evidence,
            flagged_mask=native.flagged,
            geometry=scan.geometry,
            template=TemplateVolumes(
                scan.voxels, scored.reconstruction, scored.evidence, scored.mask, self.bundle.grid
            ),
            regions=native.regions,
            neighbours=scored.neighbours,
            neighbour_slices=scored.neighbour_slices,
            warnings=(*scan.warnings, *model_warnings(scored, settings)),
            numbers={**scan.numbers, **_numbers(scored)},
            notices=self.notices,
            compared_with=scored.compared_with,
            model_id=self.model_id,
            calibration_id=self.calibration_id,
            **self._apply_calibration(scored.scores),
        )

    def _in_scan_space(self, scan: TemplateScan, scored: ScoredVolume) -> NativeResult:
        threshold = self.calibration.record.voxel_threshold if self.calibration else None
        smallest = self.bundle.config.scoring.min_region_ml
        return in_scan_space(scored, self.bundle.grid, scan.geometry, scan.template_from_scan, threshold, smallest)

    def _apply_calibration(self, scores: dict[str, float]) -> dict[str, Any]:
        if self.calibration is None:
            return {}
        calibrated = {name: score for name, score in scores.items() if name in self.calibration.score_names}
        record = self.calibration.record
        return {
            "p_values": self.calibration.p_values(calibrated),
            "percentiles": self.calibration.percentiles(calibrated),
            "flagged": self.calibration.flag(scores[self.bundle.config.scoring.scan_score]),
            "threshold": record.threshold,
            "alpha": record.alpha,
        }


def load_model(
    folder: str | Path,
    *,
    alpha: float | None = None,
    calibration: str | None = None,
    device: str = "auto",
    allow_command: bool = False,
) -> Model:
    """Load a model that ``anomaly train`` or ``anomaly ensemble`` wrote, or that comes with the package.

    Parameters
    ----------
    folder
        The model folder, or the name of a shipped model, e.g. ``"default"``.
    alpha, calibration
        Which calibration to use: the newest one for this target false-positive rate, or the one of this id. If
        neither is given, the newest of all; a model without a calibration then gives scores and maps alone.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    allow_command
        Whether the model may run the program that its config names to extract brains. Read it first.

    Raises
    ------
    BundleError
        There is no model, or its files are not those it was saved with, or the name fits two models.
    CommandRefusedError
        The model would run a program, which was not allowed; the message shows it.
    UncalibratedError
        There is no such calibration.

    Examples
    --------
    >>> import anomaly
    >>> model = anomaly.load_model("model/")
    >>> result = model.score("sample_data/mr/sub-53/anat/sub-53_T1w.nii.gz")
    >>> result.evidence.shape == result.geometry.shape
    True
    >>> result.score == result.scores[result.score_name]
    True
    >>> result.p_value is None  # until the model is calibrated with `anomaly calibrate`
    True
    """
    path = find_model(folder)
    bundle = open_bundle(path, choose_device(device), allow_command=allow_command)
    return Model(bundle, choose_calibration(path, alpha, calibration))


def choose_calibration(folder: Path, alpha: float | None, calibration: str | None) -> Calibration | None:
    """Return the calibration of this id, the newest for this target rate, or the newest; None where there is none.

    Raises
    ------
    UncalibratedError
        A calibration was asked for that does not exist.
    ConfigError
        The calibration of this id has another target rate than ``alpha``.
    """
    if calibration is None:
        return calibrations.latest(folder) if alpha is None else calibrations.for_alpha(folder, alpha)
    found = calibrations.load(folder, calibration)
    if alpha not in (None, found.record.alpha):
        raise ConfigError(
            f"calibration {calibration} has a target false-positive rate of {found.record.alpha:g}, but alpha "
            f"{alpha:g} was asked for; give one of the two"
        )
    return found


def _numbers(scored: ScoredVolume) -> dict[str, float]:
    shift = scored.acquisition_shift
    return {"similarity": scored.similarity} | ({} if shift is None else {"acquisition_p": shift.p_value})
