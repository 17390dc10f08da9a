"""Write the tables of docs/benchmarks.md: the results of finished benchmarks, and studies of their models.

``make benchmarks`` runs the benchmarks and then this module. The prose of the page is written by hand. A table is
between ``<!-- measured: NAME -->`` and ``<!-- end -->``; this module replaces it.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from anomaly.cohort.table import accepted, read_records
from anomaly.core.errors import ConfigError, InputError, unknown_name
from anomaly.core.files import write_text
from anomaly.evaluation.tables import fill_tables, markdown, table_marker
from anomaly.preprocessing.chain import ChainSettings
from pipelines.benchmark.speed.cpu import measure_speed
from pipelines.benchmark.studies.ablation import PUBLISHED, ablation
from pipelines.benchmark.studies.acquisition_shift import acquisition_shift_table
from pipelines.benchmark.studies.age import age_table
from pipelines.benchmark.studies.common import load_benchmark_model, plant_held_out_scans, table_text
from pipelines.benchmark.studies.evidence import evidence_table
from pipelines.benchmark.studies.function_evaluations import evaluations_table
from pipelines.benchmark.studies.planting import planting_table
from pipelines.benchmark.studies.preprocessing import measure_brain_extraction
from pipelines.benchmark.studies.structure import structure_table
from pipelines.benchmark.tables import Measurement, measurement_table
from pipelines.scan_input import is_cohort

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
STUDIED_MODEL = "dae"
SHIFTED_MODELS = (STUDIED_MODEL, "pca", "atlas")  # scored on scans with a changed acquisition

STRUCTURE_MODELS = (STUDIED_MODEL, "diffusion")
AGE_MODELS = ("atlas", "pca", STUDIED_MODEL)
OTHER_SCANNER = "oasis"  # cohort of another scanner in the folder of the benchmark


@dataclass(frozen=True)
class Sources:
    """Where the scans and the finished benchmarks are.

    Parameters
    ----------
    data
        The folder with ``ixi/``, ``ixi_head/``, ``pathology/`` and ``lesion_shapes/``.
    output
        The folder of the finished benchmark ``ixi``.
    small
        The folder of the finished benchmark ``families``.
    """

    data: Path
    output: Path
    small: Path

    @property
    def shapes(self) -> Path:
        """Masks of real lesions."""
        return self.data / "lesion_shapes"

    @property
    def cohort(self) -> Path:
        """The healthy scans of the benchmark."""
        return self.output / "cohort"


def write_page(sources: Sources, page: Path = PAGE, wanted: Collection[str] = ()) -> None:
    """Measure tables and write them into the page.

    Parameters
    ----------
    wanted
        Names of tables; without any, all tables that the page has a place for.

    Raises
    ------
    ConfigError
        There is no such table.
    InputError
        A benchmark is not finished, or the page has no place for a table.
    """
    text = page.read_text(encoding="utf-8")
    for name in wanted:
        if name not in TABLES:
            raise ConfigError(unknown_name("table", name, list(TABLES)))
    for name, measure in TABLES.items():
        if name in (wanted or TABLES) and (wanted or table_marker(name) in text):
            text = fill_tables(text, {name: measure(sources)})
    write_text(page, text)


def detection_table(sources: Sources) -> str:
    """Return the results of the benchmark on real scans."""
    return _results(sources.output, f"--config ixi --data {sources.data}")


def families_table(sources: Sources) -> str:
    """Return the results of the benchmark of a small model of every family."""
    return _results(sources.small, "--config families --data sample_data")


def evidence_settings_table(sources: Sources) -> str:
    """Measure the contribution of each part of the evidence of one model."""
    model = load_benchmark_model(sources.output / "models" / STUDIED_MODEL, sources.cohort)
    return table_text(evidence_table(model, plant_held_out_scans(model, sources.shapes)))


def structure_evidence_table(sources: Sources) -> str:
    """Measure what shape, structure and the background add to the evidence of several models."""
    cases = sources.output / "cases"
    tables = {
        name: structure_table(
            load_benchmark_model(sources.output / "models" / name, sources.cohort),
            sources.shapes,
            cases if is_cohort(cases) else None,
        )
        for name in STRUCTURE_MODELS
    }
    return "\n\n".join(f"`{name}`\n\n{table_text(table)}" for name, table in tables.items())


def shifted_scans_table(sources: Sources) -> str:
    """Measure several models on scans with a changed acquisition."""
    models = {name: sources.output / "models" / name for name in SHIFTED_MODELS}
    return table_text(acquisition_shift_table(models, sources.cohort, sources.shapes))


def age_effect_table(sources: Sources) -> str:
    """Measure several models against healthy subjects of all ages, and of the age and sex of the subject."""
    models = {name: sources.output / "models" / name for name in AGE_MODELS}
    other = sources.output / OTHER_SCANNER
    return markdown(age_table(models, sources.cohort, sources.shapes, other if is_cohort(other) else None))


def ablation_table(sources: Sources) -> str:
    """Measure the ablation of training settings; it takes hours and continues where it was interrupted."""
    folder = sources.output / "ablation"
    tables = [ablation(name, changes, sources.cohort, sources.shapes, folder)
              for name, changes in PUBLISHED.items()]  # fmt: skip
    return table_text(pd.concat(tables))


def diffusion_table(sources: Sources) -> str:
    """Measure the effect of the number of network evaluations on the diffusion model."""
    model = load_benchmark_model(sources.output / "models" / "diffusion", sources.cohort)
    return markdown(evaluations_table(model, sources.shapes))


def planted_grain_table(sources: Sources) -> str:
    """Measure whether the fine grain of a planted scan betrays its lesion."""
    return markdown(planting_table(sources.cohort, sources.shapes))


def speed_table(sources: Sources) -> str:
    """Measure speed and memory."""
    return measurement_table(measure_speed(sources.data, sources.output / "models" / STUDIED_MODEL, sources.cohort))


def preprocessing_table(sources: Sources) -> str:
    """Measure brain extraction and registration."""
    return measurement_table(preprocessing_rows(sources.data, sources.output))


TABLES: Mapping[str, Callable[[Sources], str]] = {
    "detection": detection_table,
    "families": families_table,
    "evidence": evidence_settings_table,
    "structure": structure_evidence_table,
    "acquisition_shift": shifted_scans_table,
    "age": age_effect_table,
    "ablation": ablation_table,
    "evaluations": diffusion_table,
    "planting": planted_grain_table,
    "speed": speed_table,
    "preprocessing": preprocessing_table,
}
"""The function that makes each table, by the table's name in the page."""


def _results(folder: Path, command: str) -> str:
    path = folder / "results.md"
    if not path.is_file():
        raise InputError(f"no {path}; run `anomaly benchmark {command} -o {folder}` first")
    return re.sub(r"^(#+) ", r"\1# ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def preprocessing_rows(data: Path, output: Path) -> list[Measurement]:
    """Measure the brain extraction, and read from the benchmark's cohorts how well scans were registered."""
    heads = measure_brain_extraction(data / "ixi_head", ChainSettings())
    rows = [
        Measurement(
            f"brain extraction, {len(heads)} IXI heads cropped 14 mm outside the brain: Dice with reference masks",
            f"mean {sum(heads) / len(heads):.3f}, lowest {min(heads):.3f}",
            "mean ≥ 0.93, none < 0.88",
        )
    ]
    for scans, cohort in (("IXI scans", output / "cohort"), ("real cases", output / "cases")):
        overlaps = [record.numbers["registration_overlap"] for record in accepted(read_records(cohort))]
        rows.append(
            Measurement(
                f"registration of extracted brains, {len(overlaps)} {scans}: overlap with the MNI152 brain (Dice)",
                f"mean {sum(overlaps) / len(overlaps):.3f}, lowest {min(overlaps):.3f}",
                "≥ 0.93 on every scan",
            )
        )
    return rows


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"), help="the real scans")
    parser.add_argument("--output", "-o", type=Path, default=Path("work/ixi"), help="folder of the benchmark ixi")
    parser.add_argument(
        "--small", type=Path, default=Path("work/families"), help="folder of the benchmark families"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="append", help="write only this table; may be repeated")
    options = parser.parse_args()
    if options.data is None:
        parser.error(
            "give --data, or set ANOMALY_DATA to the folder that holds ixi/, pathology/ and lesion_shapes/"
        )
    write_page(Sources(Path(options.data), options.output, options.small), options.page, options.table or ())


if __name__ == "__main__":
    main()
