from __future__ import annotations

import pytest

from pipelines.benchmark.speed.gpu import device_name, heading, networks, peak_rate, speed_table
from pipelines.common import shipped_configs


@pytest.mark.parametrize(
    ("name", "bf16", "float32"),
    [
        ("NVIDIA H200", 989, 67),
        ("NVIDIA GH200 480GB", 989, 67),
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A100-PCIE-40GB", 312, 19.5),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("Tesla T4", None, 8.1),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA A10G", None, None),
        ("x86_64, 2 cores, no GPU", None, None),
    ],
)
def test_the_peak_rate_is_that_of_exactly_this_chip(name: str, bf16: float | None, float32: float | None) -> None:
    assert (peak_rate(name, "bf16"), peak_rate(name, "32")) == (bf16, float32)


@pytest.mark.slow
def test_a_row_holds_the_speed_of_training_and_scoring() -> None:
    table = speed_table(["ae-small"], ["32"], ["eager"], "cpu", steps=2)
    row = table.iloc[0]
    assert row[["model", "precision", "variant"]].tolist() == ["ae-small", "32", "eager"]
    assert float(row["images/s"]) > 0
    assert float(row["GFLOP per image"]) == pytest.approx(0.018, abs=0.005)
    assert float(row["s per scan scored"]) > 0
    assert row["share of peak"] == "unknown"


def test_a_model_that_cannot_run_has_the_error_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> float:
        raise RuntimeError("CUDA out of memory. Tried to allocate more\nand more")

    monkeypatch.setattr("pipelines.benchmark.speed.gpu.step_seconds", exhausted)
    row = speed_table(["ae-small"], ["32"], ["eager"], "cpu", steps=2).iloc[0]
    assert row["images/s"] == "RuntimeError: CUDA out of memory. Tried to allocate more"


def test_all_networks_are_measured_and_no_baseline_is() -> None:
    for small in (False, True):
        names = networks(small)
        assert set(names) <= set(shipped_configs("models"))
        assert {"dae-small", "vae-small"} <= set(names) if small else {"dae", "vae"} <= set(names)
        assert not {name.removesuffix("-small") for name in names} & {"atlas", "pca", "intensity"}


def test_the_heading_says_that_a_cpu_is_not_a_gpu() -> None:
    assert "no GPU" in device_name("cpu")
    assert "This is not a GPU" in heading("cpu")
