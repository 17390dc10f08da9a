"""The tables of docs/benchmarks.md: those of a finished benchmark, and others of its models, measured now.

``make benchmarks`` runs the benchmark and then this. The prose of the page is written by hand; the tables stand
between ``<!-- measured: NAME -->`` and ``<!-- end -->`` and are replaced.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from anomaly.cohort.table import accepted, read_records
from anomaly.core.errors import InputError
from anomaly.core.files import write_text
from anomaly.preprocessing.chain import ChainSettings
from pipelines.bench import bench
from pipelines.bench_ablation import PUBLISHED, ablation
from pipelines.bench_evidence import evidence_tables, shown
from pipelines.bench_preprocessing import bench_extraction
from pipelines.benchmark_table import Row, measured_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
MODEL = "dae"
COMPARED = (MODEL, "pca", "atlas")  # on scans that look as if from elsewhere
ABLATION = "ablation"  # takes hours by itself: measured where the page has a place for it


def write_page(data: Path, output: Path, page: Path = PAGE) -> None:
    """Measure evidence, speed and preprocessing, and put all tables into the page.

    Parameters
    ----------
    data
        The folder with ``ixi/``, ``ixi_head/``, ``pathology/`` and ``lesion_shapes/``.
    output
        The folder of the finished benchmark ``ixi``.

    Raises
    ------
    InputError
        If there is no finished benchmark, or the page has no place for a table.
    """
    results = output / "results.md"
    if not results.is_file():
        raise InputError(f"no {results}; run `anomaly benchmark --config ixi --data {data} -o {output}` first")
    text, detection = page.read_text(encoding="utf-8"), results.read_text(encoding="utf-8")
    speed = bench(data, output / "models" / MODEL, output / "cohort")
    models = {name: output / "models" / name for name in COMPARED}
    evidence = evidence_tables(models, output / "cohort", data / "lesion_shapes")
    if place_of(ABLATION) in text:
        evidence[ABLATION] = pd.concat(
            ablation(name, changes, output / "cohort", data / "lesion_shapes", output / ABLATION)
            for name, changes in PUBLISHED.items()
        )
    tables = {
        **{name: shown(table) for name, table in evidence.items()},
        "detection": re.sub(r"^(#+) ", r"\1# ", detection, flags=re.MULTILINE),
        "speed": measured_table(speed),
        "preprocessing": measured_table(preprocessing_rows(data, output)),
    }
    write_text(page, filled(text, tables))


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


def place_of(name: str) -> str:
    """Return the line that begins the place of a table."""
    return f"<!-- measured: {name} -->\n"


def filled(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with its measured tables replaced; the rest stays as it is.

    Raises
    ------
    InputError
        If the page has no place for a table.
    """
    for name, table in tables.items():
        begin = place_of(name)
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise InputError(f"the page has no place for {name!r}: {begin.strip()} … <!-- end -->")
        text = f"{before}{begin}\n{table.strip()}\n\n{end}{after}"
    return text


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"), help="the real scans")
    parser.add_argument("--output", "-o", type=Path, default=Path("work/ixi"), help="the benchmark's folder")
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args()
    if chosen.data is None:
        parser.error(
            "give --data, or set ANOMALY_DATA to the folder that holds ixi/, pathology/ and lesion_shapes/"
        )
    write_page(Path(chosen.data), chosen.output, chosen.page)


if __name__ == "__main__":
    main()
