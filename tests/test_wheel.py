"""The wheel: what it holds, and that the command line runs from it alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from pipelines.common import Exit
from tests.conftest import REPOSITORY

SOURCES = ("anomaly", "pipelines", "configs", "sample_data")
FILES = ("pyproject.toml", "setup.py", "LICENSE", "README.md")
SHIPPED_MODEL = ("metadata.json", "weights.safetensors", "calibrations/cal-1.json", "members/one/config.yaml")
IN_THE_CHECKOUT_ONLY = (
    "pipelines/docs_pages/",
    "pipelines/shipped_models/",
    "sample_data/make.py",
    "sample_data/recipe/",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources and a shipped model, without a network, and return its path."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SHIPPED_MODEL:
        path = folder / "source" / "anomaly" / "pretrained" / "of-the-test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    for name in FILES:
        shutil.copy(REPOSITORY / name, folder / "source")
    build = ["wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Return a folder with the content of the wheel, as ``pip install`` would put it into site-packages."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_from(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the wheel's folder; ``-S`` leaves out what would add this checkout to the path."""
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def expected_files() -> set[str]:
    """Return the files of the packages and of the shipped model, where the wheel should hold them."""
    found = {f"anomaly/pretrained/of-the-test/{name}" for name in SHIPPED_MODEL}
    for name in SOURCES:
        for path in (REPOSITORY / name).rglob("*"):
            relative = path.relative_to(REPOSITORY).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and not relative.startswith(IN_THE_CHECKOUT_ONLY):
                found.add(relative if name == "anomaly" else f"anomaly/_app/{relative}")
    return found


def test_the_wheel_holds_all_packages_configs_and_sample_scans_below_anomaly(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected_files()


def test_an_installed_wheel_offers_no_module_but_anomaly(installed: Path) -> None:
    code = (
        "from importlib.util import find_spec; "
        "print([name for name in ('anomaly', 'pipelines', 'configs', 'sample_data') if find_spec(name)])"
    )
    done = run_from(installed, "-c", code)
    assert (done.stdout.strip(), done.stderr) == ("['anomaly']", "")


def test_the_entry_point_finds_the_shipped_configs(installed: Path) -> None:
    entry_points = next(installed.glob("*.dist-info")) / "entry_points.txt"
    assert "anomaly = anomaly.__main__:main" in entry_points.read_text()
    done = run_from(installed, "-c", "from anomaly.__main__ import main; main()", "info", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]["of-the-test"].startswith(str(installed.resolve()))
    configs = json.loads(done.stdout)["configs"]
    assert set(configs["benchmarks"]) == {path.stem for path in (REPOSITORY / "configs" / "benchmarks").iterdir()}


def test_worker_processes_start_from_the_wheel(installed: Path) -> None:
    scan = installed / "anomaly" / "_app" / "sample_data" / "refuse" / "constant_T1w.nii.gz"
    cohort = installed.parent / "cohort"
    done = run_from(
        installed, "-m", "anomaly", "ingest", str(scan), "-o", str(cohort), "--preprocessing", "t1w-4mm",
        "--jobs", "2", "--json",
    )  # fmt: skip
    assert done.returncode == Exit.SCANS_REFUSED, done.stderr
    (refused,) = json.loads(done.stdout)["reasons"]
    assert refused["status"] == "refused"  # a crashed worker gives "failed"


def test_a_benchmark_from_the_wheel_takes_the_sample_scans_that_came_with_it(installed: Path) -> None:
    code = (
        "import sys; from anomaly.__main__ import application_folder; "
        "sys.path.insert(0, str(application_folder())); from pipelines.common import SAMPLE; print(SAMPLE)"
    )
    sample = Path(run_from(installed, "-c", code).stdout.strip())
    assert sample.is_relative_to(installed)
    assert (sample / "manifest.csv").is_file()
