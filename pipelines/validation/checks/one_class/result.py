"""What the one-class protocol found: scores of every class and seed, and the numbers that follow from them."""

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
from anomaly.calibration.operating_point import PromiseCheck, check_promise
from anomaly.core.errors import ConfigError, InputError
from anomaly.core.files import atomic_path
from anomaly.evaluation.detection import auroc
from anomaly.scoring.ensemble import ENSEMBLE_SCORE, MergeSettings, log_p_values, merge_log_p_values

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Part = Literal["held_out", "calibration", "test"]
Scores = Mapping[str, Floats]

PARTS: tuple[Part, ...] = ("held_out", "calibration", "test")


@dataclass(frozen=True, eq=False)
class ClassScores:
    """What one detector said of its three parts.

    Parameters
    ----------
    digit, seed
        Of the detector; the digit is the normal one, or the abnormal one, as the protocol says.
    abnormal
        ``(N,)`` truth about the test pictures.
    scores
        Part → score name → values. ``held_out`` are normal pictures that no detector learnt from, by which an
        ensemble measures it; ``calibration`` are others, behind the p-values; ``test`` is ``(N,)``.
    seconds
        That learning and scoring took.
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
                    "expected a number for every picture; look at the training of this detector"
                )

    def auroc(self, score: str) -> float:
        """Return the AUROC of a score on the test pictures."""
        return auroc(self.abnormal, self.scores["test"][score])

    def p_values(self, score: str) -> Floats:
        """Return the conformal p-value of each test picture ``(N,)``."""
        return p_values(self.scores["test"][score], self.scores["calibration"][score])

    def promise(self, score: str, alpha: float) -> PromiseCheck:
        """Compare the false flags among the normal test pictures with the promise of alpha."""
        normal = self.p_values(score)[~self.abnormal]
        n_flagged = int((normal <= alpha).sum())
        return check_promise(n_flagged, len(normal), len(self.scores["calibration"][score]), alpha)


@dataclass(frozen=True, eq=False)
class OneClassResult:
    """What one trial found for every class and seed.

    Parameters
    ----------
    declared
        The score that counts; the others are there for information.
    alphas
        Promised false-flag rates.
    classes
        One of each digit and seed.
    """

    declared: str
    alphas: tuple[float, ...]
    classes: tuple[ClassScores, ...]

    def table(self) -> pd.DataFrame:
        """Return one row per digit and seed.

        ``auroc`` of the declared score and ``auroc_<name>`` of every other; for each alpha ``rate_<alpha>``, the
        share of normal test pictures that were flagged, and ``verdict_<alpha>``, where their number lies relative
        to its 99 % band (below, inside, above).
        """
        return pd.DataFrame([self._row(found) for found in self.classes])

    def measures(self) -> dict[str, float]:
        """Return the numbers that bars are set for.

        ``auroc`` is the mean over digits and seeds, ``auroc_lowest`` that of the worst digit (mean over seeds),
        ``auroc_sd`` the SD over seeds of the mean over digits (with two seeds or more). ``false_flag_rate_<alpha>``
        pools all normal test pictures. Of all digits, seeds and alphas, ``false_flags_kept`` is the share with no
        more false flags than the 99 % band of the promise allows, ``false_flags_inside`` the share inside it.
        ``seconds`` is the mean per detector.
        """
        table = self.table()
        verdicts = np.array([self._verdicts(found) for found in self.classes])
        by_seed = table.groupby("seed")["auroc"].mean()
        return {
            "auroc": float(table["auroc"].mean()),
            "auroc_lowest": float(table.groupby("digit")["auroc"].mean().min()),
            **({"auroc_sd": float(by_seed.std())} if len(by_seed) > 1 else {}),
            **{name: float(table[name].mean()) for name in table.columns if name.startswith("auroc_")},
            **{
                f"false_flag_{name}": self._pooled(table, name)
                for name in table.columns
                if name.startswith("rate_")
            },
            "false_flags_kept": float((verdicts != "above").mean()),
            "false_flags_inside": float((verdicts == "inside").mean()),
            "seconds": float(table["seconds"].mean()),
        }

    def _row(self, found: ClassScores) -> dict[str, Any]:
        others = [name for name in found.scores["test"] if name != self.declared]
        promises = {alpha: found.promise(self.declared, alpha) for alpha in self.alphas}
        return {
            "digit": found.digit,
            "seed": found.seed,
            "n_normal": int((~found.abnormal).sum()),
            "n_abnormal": int(found.abnormal.sum()),
            "auroc": found.auroc(self.declared),
            **{f"auroc_{name}": found.auroc(name) for name in others},
            **{f"rate_{alpha:g}": promise.rate for alpha, promise in promises.items()},
            **{f"verdict_{alpha:g}": promise.verdict for alpha, promise in promises.items()},
            "seconds": found.seconds,
        }

    def _verdicts(self, found: ClassScores) -> list[str]:
        return [found.promise(self.declared, alpha).verdict for alpha in self.alphas]

    @staticmethod
    def _pooled(table: pd.DataFrame, name: str) -> float:
        return float((table[name] * table["n_normal"]).sum() / table["n_normal"].sum())


def merged(results: Mapping[str, OneClassResult], merge: MergeSettings = MergeSettings()) -> OneClassResult:  # noqa: B008 - frozen
    """Return what an ensemble of trials finds: their declared scores, merged by p-values as those of scans are.

    Parameters
    ----------
    results
        Name → what a trial found, all for the same digits, seeds and parts.
    merge
        How; weights of maps are not looked at.

    Raises
    ------
    ConfigError
        If the trials do not cover the same pictures.
    """
    first = next(iter(results.values()))
    classes = []
    for place, found in enumerate(first.classes):
        members = {name: (result.classes[place : place + 1], result.declared) for name, result in results.items()}
        for name, (others, _) in members.items():
            if not others or not _same_pictures(found, others[0]):
                raise ConfigError(f"trial {name!r} has other digits, seeds or parts; examine all with one setting")
        classes.append(_merged_class({name: (o[0], score) for name, (o, score) in members.items()}, merge))
    return OneClassResult(ENSEMBLE_SCORE, first.alphas, tuple(classes))


def save_classes(path: Path, classes: Sequence[tuple[str, ClassScores]]) -> None:
    """Write the scores of classes, each with the fingerprint of what it came from, as plain arrays (npz)."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for fingerprint, found in classes:
        prefix = f"{found.digit}.{found.seed}"
        arrays[f"{prefix}.fingerprint"] = np.array(fingerprint)
        arrays[f"{prefix}.seconds"] = np.array(found.seconds)
        arrays[f"{prefix}.abnormal"] = found.abnormal
        for part, scores in found.scores.items():
            arrays |= {f"{prefix}.{part}.{name}": values for name, values in scores.items()}
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's own flag is among the keywords


def load_classes(path: Path) -> list[tuple[str, ClassScores]]:
    """Return what :func:`save_classes` wrote; nothing where there is no such file.

    Raises
    ------
    InputError
        If it is not such a file.
    """
    if not path.is_file():
        return []
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return [_loaded(arrays, name.removesuffix(".fingerprint"))
                    for name in arrays.files if name.endswith(".fingerprint")]  # fmt: skip
    except (ValueError, OSError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} holds no scores that can be read ({error}); delete it to score anew") from error


def _loaded(arrays: Any, prefix: str) -> tuple[str, ClassScores]:
    digit, seed = (int(part) for part in prefix.split("."))
    scores: dict[Part, Scores] = {
        part: {name.removeprefix(start): arrays[name] for name in arrays.files if name.startswith(start)}
        for part, start in ((part, f"{prefix}.{part}.") for part in PARTS)
    }
    seconds = float(arrays[f"{prefix}.seconds"])
    return str(arrays[f"{prefix}.fingerprint"]), ClassScores(
        digit, seed, arrays[f"{prefix}.abnormal"], scores, seconds
    )


def _merged_class(members: Mapping[str, tuple[ClassScores, str]], merge: MergeSettings) -> ClassScores:
    """Return the merged scores of one digit and seed, beside the members' declared ones."""

    def values(name: str, part: Part) -> Floats:
        found, score = members[name]
        return found.scores[part][score]

    scores: dict[Part, Scores] = {}
    for part in PARTS:
        log_p = [log_p_values(values(name, part), values(name, "held_out"), merge.p_values) for name in members]
        together = {ENSEMBLE_SCORE: merge_log_p_values(np.array(log_p), merge.how)}
        scores[part] = together | {name: values(name, part) for name in members}
    first, _ = next(iter(members.values()))
    seconds = sum(found.seconds for found, _ in members.values())
    return replace(first, scores=scores, seconds=seconds)


def _same_pictures(one: ClassScores, other: ClassScores) -> bool:
    sizes = [[len(next(iter(c.scores[part].values()))) for part in PARTS] for c in (one, other)]
    same = (one.digit, one.seed) == (other.digit, other.seed)
    return same and sizes[0] == sizes[1] and bool((one.abnormal == other.abnormal).all())
