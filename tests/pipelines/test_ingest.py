"""Ingesting scans to a cohort, and the summary of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly.cohort.build import read_cohort
from anomaly.cohort.table import read_records
from anomaly.core.errors import ConfigError, InputError
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Modality
from pipelines.ingest import IngestSummary, ingest, load_chain, summarise
from tests.conftest import REPOSITORY

CHAINS = REPOSITORY / "configs" / "preprocessing"


@pytest.fixture(scope="module")
def ingested(
    tmp_path_factory: pytest.TempPathFactory, in_this_process: None
) -> tuple[IngestSummary, Path, list[tuple[int, int, str]]]:
    """Two brains, one of them twice, a CT and the faulty scans of the sample data."""
    sample, calls = REPOSITORY / "sample_data", []
    output = tmp_path_factory.mktemp("ingest") / "cohort"
    sources = [
        sample / "mr" / "sub-01",
        sample / "mr" / "sub-47",
        sample / "dicom" / "mr",
        sample / "ct" / "sub-61",
    ]
    summary = ingest(
        [*sources, sample / "refuse"], output, CHAINS / "t1w-4mm.yaml", jobs=1,
        progress=lambda done, total, message: calls.append((done, total, message)),
    )  # fmt: skip
    return summary, output, calls


@pytest.mark.slow
def test_good_scans_are_accepted_and_all_others_have_a_reason_and_a_remedy(ingested: tuple) -> None:
    summary, _, _ = ingested
    assert summary.failed == 0
    assert (summary.accepted, summary.duplicates) == (2, 1), "the DICOM twin of sub-47 has the same content"
    assert all(reason.reason and reason.remedy for reason in summary.reasons)
    codes = {reason.scan_id: reason.code for reason in summary.reasons}
    assert codes["truncated_T1w"] == "unreadable"
    assert codes["tiny_field_of_view_T1w"] in {"too_few_slices", "field_of_view"}
    assert codes["sub-61_ct"] == "wrong_modality"


@pytest.mark.slow
def test_the_cohort_on_disk_agrees_with_the_summary(ingested: tuple) -> None:
    summary, output, _ = ingested
    records = read_records(output)
    assert summarise(output, records) == summary
    assert sum(r.status is ScanStatus.ACCEPTED for r in records) == read_cohort(output)["scans"]["accepted"]
    assert read_cohort(output)["modality"] == "T1w"


@pytest.mark.slow
def test_progress_counts_every_scan(ingested: tuple) -> None:
    _, output, calls = ingested
    total = len(read_records(output))
    assert [done for done, _, _ in calls] == list(range(total + 1))
    assert {of for _, of, _ in calls} == {total}


@pytest.mark.slow
def test_the_summary_is_plain_json(ingested: tuple) -> None:
    summary, _, _ = ingested
    assert json.loads(json.dumps(summary.as_dict()))["refused"] == summary.refused


@pytest.mark.slow
def test_the_user_is_recorded(ingested: tuple) -> None:
    _, output, _ = ingested
    assert json.loads((output / "audit.jsonl").read_text(encoding="utf-8"))["verb"] == "ingest"


def test_the_configuration_of_a_chain_is_read_and_checked(tmp_path: Path) -> None:
    assert load_chain(CHAINS / "ct.yaml").modality is Modality.CT
    (tmp_path / "mine.yaml").write_text("modality: T1w\nbrain: {}\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: unknown key 'brain'; valid keys there: .*brain_mask"):
        load_chain(tmp_path / "mine.yaml")


def test_an_unknown_modality_is_an_error_that_lists_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown modality 'T9'; valid: CT, FLAIR, T1ce, T1w, T2w"):
        ingest([tmp_path], tmp_path / "cohort", CHAINS / "t1w.yaml", modality="T9")


def test_a_source_that_does_not_exist_is_an_error_and_makes_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no source at"):
        ingest([tmp_path / "nowhere"], tmp_path / "cohort", CHAINS / "t1w.yaml")
    assert not (tmp_path / "cohort").exists()


@pytest.mark.slow
@pytest.mark.real_data
def test_real_scans_of_every_form_are_ingested_together(
    anomaly_data: Path, tmp_path: Path, in_this_process: None
) -> None:
    sources = [
        anomaly_data / "ixi" / "sub-IXI012",
        anomaly_data / "pathology" / "sub-STROKE1",
        anomaly_data / "dicom",
    ]
    summary = ingest(sources, tmp_path / "cohort", CHAINS / "t1w-4mm.yaml")
    assert (summary.accepted, summary.refused, summary.failed) == (3, 3, 0)
