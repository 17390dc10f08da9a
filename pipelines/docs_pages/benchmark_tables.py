"""The tables of docs/benchmarks.md: those of a finished benchmark, and others of its models, measured now.

``make benchmarks`` runs the benchmark and then this. The prose of the page is written by hand; the tables stand
between ``<!-- measured: NAME -->`` and ``<!-- end -->`` and are replaced.
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
from anomaly.evaluation.tables import filled, markdown, place_of
from anomaly.preprocessing.chain import ChainSettings
from pipelines.benchmark.speed.cpu import bench
from pipelines.benchmark.studies.ablation import PUBLISHED, ablation
from pipelines.benchmark.studies.evidence import evidence_tables, open_model, shown
from pipelines.benchmark.studies.function_evaluations import evaluations_table
from pipelines.benchmark.studies.preprocessing import bench_extraction
from pipelines.benchmark.tables import Row, measured_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
MODEL = "dae"
COMPARED = (MODEL, "pca", "atlas")  # on scans that look as if from elsewhere


@dataclass(frozen=True)
class Sources:
    """What the tables are measured on.

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
    """Measure tables and put them into the page.

    Parameters
    ----------
    wanted
        Names of tables; all that the page has a place for, if none is named.

    Raises
    ------
    ConfigError
        If there is no such table.
    InputError
        If a benchmark is not finished, or the page has no place for a table.
    """
    text = page.read_text(encoding="utf-8")
    known = [name for names in MEASURES for name in names]
    for name in wanted:
        if name not in known:
            raise ConfigError(unknown_name("table", name, known))
    chosen = wanted or [name for name in known if place_of(name) in text]
    for names, measure in MEASURES.items():
        if asked := set(names) & set(chosen):
            tables = measure(sources)
            text = filled(text, {name: tables[name] for name in names if name in asked})
    write_text(page, text)


def detection_tables(sources: Sources) -> dict[str, str]:
    """Return what the benchmark of real scans has found."""
    command = f"--config ixi --data {sources.data}"
    return {"detection": _results(sources.output, command)}


def family_tables(sources: Sources) -> dict[str, str]:
    """Return what the benchmark of small models of every family has found."""
    return {"families": _results(sources.small, "--config families --data sample_data")}


def parts_and_other_scans(sources: Sources) -> dict[str, str]:
    """Return what each part of the evidence is worth, and models on scans that look as if from elsewhere."""
    models = {name: sources.output / "models" / name for name in COMPARED}
    tables = evidence_tables(models, sources.cohort, sources.shapes)
    return {name: shown(table) for name, table in tables.items()}


def ablation_tables(sources: Sources) -> dict[str, str]:
    """Return what choices made before training are worth; hours, and continued where interrupted."""
    folder = sources.output / "ablation"
    tables = [ablation(name, changes, sources.cohort, sources.shapes, folder)
              for name, changes in PUBLISHED.items()]  # fmt: skip
    return {"ablation": shown(pd.concat(tables))}


def evaluations_tables(sources: Sources) -> dict[str, str]:
    """Return what more network evaluations are worth to the diffusion model."""
    model = open_model(sources.output / "models" / "diffusion", sources.cohort)
    return {"evaluations": markdown(evaluations_table(model, sources.shapes))}


def speed_tables(sources: Sources) -> dict[str, str]:
    """Return speed and memory."""
    rows = bench(sources.data, sources.output / "models" / MODEL, sources.cohort)
    return {"speed": measured_table(rows)}


def preprocessing_tables(sources: Sources) -> dict[str, str]:
    """Return how well brains are extracted and registered."""
    return {"preprocessing": measured_table(preprocessing_rows(sources.data, sources.output))}


MEASURES: Mapping[tuple[str, ...], Callable[[Sources], Mapping[str, str]]] = {
    ("detection",): detection_tables,
    ("families",): family_tables,
    ("parts", "other_scans"): parts_and_other_scans,
    ("ablation",): ablation_tables,
    ("evaluations",): evaluations_tables,
    ("speed",): speed_tables,
    ("preprocessing",): preprocessing_tables,
}


def _results(folder: Path, command: str) -> str:
    path = folder / "results.md"
    if not path.is_file():
        raise InputError(f"no {path}; run `anomaly benchmark {command} -o {folder}` first")
    return re.sub(r"^(#+) ", r"\1# ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def preprocessing_rows(data: Path, output: Path) -> list[Row]:
    """Return how well brains are extracted, measured now, and how well the benchmark registered its scans."""
    heads = bench_extraction(data / "ixi_head", ChainSettings())
    rows = [
        Row(
            f"brain extraction, {len(heads)} IXI heads cropped 14 mm outside the brain: Dice with the given masks",
            f"mean {sum(heads) / len(heads):.3f}, lowest {min(heads):.3f}",
            "mean ≥ 0.93, none < 0.88",
        )
    ]
    for what, cohort in (("IXI scans", output / "cohort"), ("real cases", output / "cases")):
        found = [record.numbers["registration_overlap"] for record in accepted(read_records(cohort))]
        rows.append(
            Row(
                f"registration of extracted brains, {len(found)} {what}: overlap with the MNI152 brain (Dice)",
                f"mean {sum(found) / len(found):.3f}, lowest {min(found):.3f}",
                "≥ 0.93 on every scan",
            )
        )
    return rows


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"), help="the real scans")
    parser.add_argument("--output", "-o", type=Path, default=Path("work/ixi"), help="of the benchmark ixi")
    parser.add_argument("--small", type=Path, default=Path("work/families"), help="of the benchmark families")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="append", help="only this one; may be given more than once")
    chosen = parser.parse_args()
    if chosen.data is None:
        parser.error(
            "give --data, or set ANOMALY_DATA to the folder that holds ixi/, pathology/ and lesion_shapes/"
        )
    write_page(Sources(Path(chosen.data), chosen.output, chosen.small), chosen.page, chosen.table or ())


if __name__ == "__main__":
    main()
