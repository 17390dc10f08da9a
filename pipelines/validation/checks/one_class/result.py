"""Results of one-class detection: scores of every class and seed, and the measures computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd

from anomaly.calibration.conformal import p_values
from anomaly.calibration.operating_point import FPRCheck, check_fpr
from anomaly.core.errors import ConfigError, InputError
from anomaly.core.files import atomic_path
from anomaly.evaluation.detection import auroc
from anomaly.scoring.ensemble import ENSEMBLE_SCORE, MergeSettings, log_p_values, merge_log_p_values

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Part = Literal["held_out", "calibration", "test"]
Scores = Mapping[str, Floats]

SCORED_PARTS: tuple[Part, ...] = ("held_out", "calibration", "test")


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores that one detector gives to the images of its three parts.

    Parameters
    ----------
    digit, seed
        Digit and seed of the detector; the digit is the normal or the abnormal one, as the protocol says.
    abnormal
        ``(N,)`` whether each test image is abnormal.
    scores
        Part → score name → values. ``held_out`` are normal images that no detector was trained on; ensembles
        compare scores with them. ``calibration`` are others, for the p-values; ``test`` is ``(N,)``.
    seconds
        Time of training and scoring.
    """

    digit: int
    seed: int
    abnormal: Flags
    scores: Mapping[Part, Scores]
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for part, found in self.scores.items():
            broken = [name for name, values in found.items() if not np.isfinite(values).all()]
            if broken:
                raise InputError(
                    f"digit {self.digit}, seed {self.seed}: score {broken[0]!r} of part {part!r} is not finite; "
                    "expected a number for every image; check the training of this detector"
                )

    def auroc(self, score: str) -> float:
        """Return the AUROC of a score on the test images."""
        return auroc(self.abnormal, self.scores["test"][score])

    def p_values(self, score: str) -> Floats:
        """Return the conformal p-value of each test image ``(N,)``."""
        return p_values(self.scores["test"][score], self.scores["calibration"][score])

    def fpr_check(self, score: str, alpha: float) -> FPRCheck:
        """Compare the false-positive rate on the normal test images with the target alpha."""
        normal = self.p_values(score)[~self.abnormal]
        n_flagged = int((normal <= alpha).sum())
        return check_fpr(n_flagged, len(normal), len(self.scores["calibration"][score]), alpha)


@dataclass(frozen=True, eq=False)
class OneClassResult:
    """Scores of one model for every class and seed.

    Parameters
    ----------
    declared
        Name of the score that is evaluated; the others are reported for information.
    alphas
        Target false-positive rates.
    classes
        One for each digit and seed.
    """

    declared: str
    alphas: tuple[float, ...]
    classes: tuple[ClassScores, ...]

    def table(self) -> pd.DataFrame:
        """Return one row per digit and seed.

        ``auroc`` of the declared score and ``auroc_<name>`` of every other; for each alpha ``fpr_<alpha>``, the
        share of normal test images that are flagged, and ``band_<alpha>``, where their number lies relative to its
        99 % band (below, inside, above).
        """
        return pd.DataFrame([self._row(found) for found in self.classes])

    def measures(self) -> dict[str, float]:
        """Return the measures that thresholds are set for.

        ``auroc`` is the mean over digits and seeds, ``auroc_lowest`` that of the worst digit (mean over seeds),
        ``auroc_sd`` the SD over seeds of the mean over digits (with two seeds or more). ``fpr_<alpha>`` is the
        false-positive rate on all normal test images together. Of all digits, seeds and alphas,
        ``fpr_not_exceeded`` is the share whose false positives are no more than the 99 % band around the target
        allows, ``fpr_inside_band`` the share inside the band. ``seconds`` is the mean per detector.
        """
        table = self.table()
        positions = np.array([self._band_positions(found) for found in self.classes])
        by_seed = table.groupby("seed")["auroc"].mean()
        return {
            "auroc": float(table["auroc"].mean()),
            "auroc_lowest": float(table.groupby("digit")["auroc"].mean().min()),
            **({"auroc_sd": float(by_seed.std())} if len(by_seed) > 1 else {}),
            **{name: float(table[name].mean()) for name in table.columns if name.startswith("auroc_")},
            **{name: self._pooled(table, name) for name in table.columns if name.startswith("fpr_")},
            "fpr_not_exceeded": float((positions != "above").mean()),
            "fpr_inside_band": float((positions == "inside").mean()),
            "seconds": float(table["seconds"].mean()),
        }

    def _row(self, found: ClassScores) -> dict[str, Any]:
        others = [name for name in found.scores["test"] if name != self.declared]
        checks = {alpha: found.fpr_check(self.declared, alpha) for alpha in self.alphas}
        return {
            "digit": found.digit,
            "seed": found.seed,
            "n_normal": int((~found.abnormal).sum()),
            "n_abnormal": int(found.abnormal.sum()),
            "auroc": found.auroc(self.declared),
            **{f"auroc_{name}": found.auroc(name) for name in others},
            **{f"fpr_{alpha:g}": check.rate for alpha, check in checks.items()},
            **{f"band_{alpha:g}": check.position for alpha, check in checks.items()},
            "seconds": found.seconds,
        }

    def _band_positions(self, found: ClassScores) -> list[str]:
        return [found.fpr_check(self.declared, alpha).position for alpha in self.alphas]

    @staticmethod
    def _pooled(table: pd.DataFrame, name: str) -> float:
        return float((table[name] * table["n_normal"]).sum() / table["n_normal"].sum())


def merged(results: Mapping[str, OneClassResult], merge: MergeSettings = MergeSettings()) -> OneClassResult:  # noqa: B008 - frozen
    """Return the result of an ensemble: its members' declared scores, merged by p-values as for scans.

    Parameters
    ----------
    results
        Name → result of a member, all for the same digits, seeds and parts.
    merge
        How scores are merged; weights of maps are not used.

    Raises
    ------
    ConfigError
        If the members were not evaluated on the same images.
    """
    first = next(iter(results.values()))
    classes = []
    for position, found in enumerate(first.classes):
        members = {
            name: (result.classes[position : position + 1], result.declared) for name, result in results.items()
        }
        for name, (others, _) in members.items():
            if not others or not _same_images(found, others[0]):
                raise ConfigError(
                    f"model {name!r} has other digits, seeds or parts; evaluate all with the same settings"
                )
        classes.append(_merged_class({name: (o[0], score) for name, (o, score) in members.items()}, merge))
    return OneClassResult(ENSEMBLE_SCORE, first.alphas, tuple(classes))


def save_classes(path: Path, classes: Sequence[tuple[str, ClassScores]]) -> None:
    """Write the scores of classes, each with its cache key, as plain arrays (npz)."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for cache_key, found in classes:
        prefix = f"{found.digit}.{found.seed}"
        arrays[f"{prefix}.cache_key"] = np.array(cache_key)
        arrays[f"{prefix}.seconds"] = np.array(found.seconds)
        arrays[f"{prefix}.abnormal"] = found.abnormal
        for part, scores in found.scores.items():
            arrays |= {f"{prefix}.{part}.{name}": values for name, values in scores.items()}
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's own flag is among the keywords


def load_classes(path: Path) -> list[tuple[str, ClassScores]]:
    """Return what :func:`save_classes` wrote; nothing if there is no such file.

    Raises
    ------
    InputError
        If it is not such a file.
    """
    if not path.is_file():
        return []
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return [_loaded(arrays, name.removesuffix(".cache_key"))
                    for name in arrays.files if name.endswith(".cache_key")]  # fmt: skip
    except (ValueError, OSError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} has no readable scores ({error}); delete it to score anew") from error


def _loaded(arrays: Any, prefix: str) -> tuple[str, ClassScores]:
    digit, seed = (int(part) for part in prefix.split("."))
    scores: dict[Part, Scores] = {
        part: {name.removeprefix(start): arrays[name] for name in arrays.files if name.startswith(start)}
        for part, start in ((part, f"{prefix}.{part}.") for part in SCORED_PARTS)
    }
    seconds = float(arrays[f"{prefix}.seconds"])
    return str(arrays[f"{prefix}.cache_key"]), ClassScores(
        digit, seed, arrays[f"{prefix}.abnormal"], scores, seconds
    )


def _merged_class(members: Mapping[str, tuple[ClassScores, str]], merge: MergeSettings) -> ClassScores:
    """Return the merged scores of one digit and seed, with the members' declared ones."""

    def values(name: str, part: Part) -> Floats:
        found, score = members[name]
        return found.scores[part][score]

    scores: dict[Part, Scores] = {}
    for part in SCORED_PARTS:
        log_p = [log_p_values(values(name, part), values(name, "held_out"), merge.p_values) for name in members]
        together = {ENSEMBLE_SCORE: merge_log_p_values(np.array(log_p), merge.how)}
        scores[part] = together | {name: values(name, part) for name in members}
    first, _ = next(iter(members.values()))
    seconds = sum(found.seconds for found, _ in members.values())
    return replace(first, scores=scores, seconds=seconds)


def _same_images(one: ClassScores, other: ClassScores) -> bool:
    sizes = [[len(next(iter(c.scores[part].values()))) for part in SCORED_PARTS] for c in (one, other)]
    same = (one.digit, one.seed) == (other.digit, other.seed)
    return same and sizes[0] == sizes[1] and bool((one.abnormal == other.abnormal).all())
