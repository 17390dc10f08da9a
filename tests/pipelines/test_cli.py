from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anomaly.core.errors import OutputError
from anomaly.core.files import read_json
from anomaly.core.locks import only_writer
from anomaly.core.processes import Interrupted
from pipelines.cli import _log_lines, app
from pipelines.common import Exit
from tests.pipelines.cohorts import make_cohort
from tests.pipelines.conftest import Trained

VERBS = [
    "ingest",
    "train",
    "ensemble",
    "calibrate",
    "score",
    "report",
    "evaluate",
    "benchmark",
    "validate",
    "info",
    "audit",
]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(verb: str) -> None:
    code, out, _ = run(verb, "--help")

    assert code == Exit.DONE
    assert f"anomaly {verb} " in out


def test_help_imports_no_numerical_library() -> None:
    """Typer does not need pydantic either, so it is on the list."""
    assert _imported_by([["--help"]], "numpy", "pandas", "pydantic", "torch") == set()


@pytest.mark.slow
def test_help_of_a_command_and_info_import_no_large_library() -> None:
    assert _imported_by([["info"], ["train", "--help"]], "torch", "monai", "SimpleITK", "pandas") == set()


def test_help_takes_less_than_a_quarter_of_a_second_of_processor_time() -> None:
    """The limit holds on an idle core; on a slower or busy one it grows with the start-up time of Python."""
    anomaly_help, python_start = (
        min(_processor_seconds([sys.executable, *arguments]) for _ in range(5))
        for arguments in (["-m", "anomaly", "--help"], ["-c", "pass"])
    )

    assert anomaly_help < max(0.25, 15 * python_start)


def test_info_lists_families_and_configs_as_json() -> None:
    code, out, _ = run("info", "--json")
    facts = json.loads(out)

    assert code == Exit.DONE
    assert {"dae", "ae", "vae", "atlas", "pca", "intensity"} <= set(facts["families"])
    assert "dae" in facts["configs"]["models"]
    assert "t1w" in facts["configs"]["preprocessing"]
    assert facts["versions"]["torch"] != "not installed"


def test_info_says_what_a_config_would_train() -> None:
    code, out, _ = run("info", "vae-small", "--json")
    facts = json.loads(out)

    assert code == Exit.DONE
    assert (facts["family"], facts["grid"]) == ("vae", "48 × 48 × 48 voxels of 4 mm")
    convolutions = sum(9 * a * b + b + 2 * b for a, b in [(1, 16), (16, 32), (32, 64), (64, 32), (32, 16)])
    dense = 2 * (2304 * 64 + 64) + (64 * 2304 + 2304)  # 64 features at each of 6 × 6 places
    assert facts["trainable_parameters"] == convolutions + 9 * 16 * 1 + 1 + dense


def test_info_says_that_a_baseline_has_no_parameters() -> None:
    assert re.search(r"^trainable parameters +0$", run("info", "pca")[1], re.MULTILINE)


def test_info_says_what_a_model_is(trained: Trained) -> None:
    code, out, _ = run("info", trained.model, "--json")
    facts, metadata = json.loads(out), read_json(trained.model / "metadata.json")

    assert code == Exit.DONE
    assert facts["model_id"] == metadata["model_id"]
    assert facts["trainable_parameters"] == metadata["training"]["n_parameters"]
    assert facts["target_false_positive_rates"] == "0.05, 0.1"


def test_info_of_nothing_says_what_to_give(tmp_path: Path) -> None:
    code, _, error = run("info", tmp_path)

    assert code == Exit.BAD_INPUT
    assert "holds no model" in error


def test_bad_input_is_one_line_on_standard_error_and_exit_code_4(tmp_path: Path) -> None:
    code, out, error = run("score", tmp_path / "nothing", tmp_path, "-o", tmp_path / "run")

    assert (code, out) == (Exit.BAD_INPUT, "")
    assert error.startswith("anomaly: ")
    assert "holds no model" in error


def test_an_unknown_config_lists_the_shipped_ones(tmp_path: Path) -> None:
    code, _, error = run("train", "--config", "dea", "--cohort", tmp_path, "-o", tmp_path / "model")

    assert code == Exit.BAD_INPUT
    assert "unknown models config 'dea'; valid: ae, ae-small, atlas" in error


def test_an_alpha_that_is_too_small_is_a_policy_error(trained: Trained) -> None:
    code, _, error = run(
        "calibrate", trained.model, "--cohort", trained.holdout, "--alpha", 0.01, "--reason", "too strict", "-q"
    )

    assert code == Exit.POLICY
    assert "cannot be controlled with 24 healthy scans" in error


def test_a_flag_is_a_result_and_an_error_only_on_request(trained: Trained, tmp_path: Path) -> None:
    abnormal = make_cohort(tmp_path / "abnormal", [410], lesion=True)
    plain, out, _ = run("score", trained.model, abnormal, "-o", tmp_path / "a", "--alpha", 0.05, "--json", "-q")
    strict, _, _ = run(
        "score", trained.model, abnormal, "-o", tmp_path / "a", "--alpha", 0.05, "--fail-on-flag", "-q"
    )

    assert (plain, strict) == (Exit.DONE, Exit.FLAGGED)
    assert json.loads(out)["flagged"] == 1


def test_scoring_nothing_is_an_error_that_says_what_was_expected(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, error = run("score", trained.model, tmp_path / "empty", "-o", tmp_path / "run", "-q")

    assert code == Exit.BAD_INPUT
    assert "expected NIfTI, MGH, NRRD, MetaImage, DICOM, a zip or a manifest.csv" in error


def test_a_log_says_how_long_each_part_of_the_work_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [(0, 500, 1000), (20, 520, 1000), (25, 530, 1000), (100, 1, 11), (110, 2, 11)]
    times = iter([0, *(seconds for seconds, _, _ in reports)])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    report = _log_lines(every_seconds=10)
    for _, done, total in reports:
        report(done, total, "working")

    # Resumed at 500: a step a second; nothing within 10 s; the next part is timed on its own.
    assert capsys.readouterr().err.splitlines() == [
        "520/1000 working (8 min left)",
        "2/11 working (2 min left)",
    ]


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "anomaly: interrupted; finished results are saved, run the same command again"),
        (Interrupted(signal.SIGTERM), 143, "anomaly: interrupted; finished results are saved"),
        (OutputError("cannot write x: disk full; free space"), 4, "anomaly: cannot write x: disk full; free space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "scan.nii"),
            4,
            "Permission denied: 'scan.nii'; make it",
        ),
    ],
)
def test_what_ends_a_command_is_one_line_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("pipelines.ingest.ingest", fail)
    found, out, error = run("ingest", tmp_path, "-o", tmp_path / "cohort")
    assert (found, out) == (code, "")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["ingest", "train", "score", "ensemble", "benchmark"])
def test_an_output_that_is_a_file_is_one_line_and_exit_code_4(tmp_path: Path, verb: str) -> None:
    output = tmp_path / "output"
    output.write_text("a file")
    arguments = {
        "ingest": [tmp_path], "train": ["--cohort", tmp_path], "score": [tmp_path, tmp_path],
        "ensemble": [tmp_path, tmp_path], "benchmark": [],
    }  # fmt: skip
    code, _, error = run(verb, *arguments[verb], "-o", output)
    assert code == Exit.BAD_INPUT
    assert f"cannot write {output}" in error
    assert output.read_text() == "a file"


def test_a_second_command_on_a_folder_says_who_writes_it(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_writer(folder):
        code, _, error = run("score", trained.model, trained.holdout, "-o", folder, "-q")
    assert code == Exit.BAD_INPUT
    assert f"{folder} is being written by process {os.getpid()} on " in error


@pytest.mark.parametrize("verb", [["report"], ["evaluate", "--labels", "labels.tsv"]])
def test_a_run_that_does_not_exist_is_not_made(tmp_path: Path, verb: list[str]) -> None:
    code, _, error = run(*verb, tmp_path / "run")
    assert code == Exit.BAD_INPUT
    assert "no run at" in error or "no finished run" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_summary_that_cannot_be_printed_is_one_line_and_exit_code_4() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "anomaly", "info", "pca"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == Exit.BAD_INPUT
    assert done.stderr.startswith("anomaly: [Errno 28] No space left on device")
    assert done.stderr.count("\n") == 1


def _imported_by(commands: list[list[str]], *libraries: str) -> set[str]:
    """Return which of the libraries a new Python process has loaded after it ran the commands."""
    code = (
        "import contextlib, io, sys\n"
        "from anomaly.__main__ import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['anomaly', *arguments]\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main()\n"
        f"print(*sorted({set(libraries)!r} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def _processor_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_the_commands_take_the_name_of_a_shipped_model(
    shipped_model: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohort = make_cohort(tmp_path / "cohort", [300])
    code, out, err = run("score", "default", cohort, "-o", "run")
    assert (code, err.count("notice: The target FPR holds for the scanner of the shipped reference")) == (0, 1)

    code, out, err = run("calibrate", "default", "--cohort", trained.holdout, "--reason", "ours")
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert "never changed" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "run"]

    code, out, err = run("calibrate", "default", "--cohort", trained.holdout, "--reason", "ours", "-o", "ours")
    assert (code, err) == (0, "")
    code, out, err = run("score", "ours", cohort, "-o", "own_run")
    assert (code, err) == (0, "")


def test_a_model_that_does_not_exist_is_refused_with_the_shipped_names(shipped_model: Path, tmp_path: Path) -> None:
    code, _, err = run("score", "defualt", tmp_path, "-o", tmp_path / "run")
    assert code == Exit.BAD_INPUT
    assert "or the name of a model that comes with anomaly: default" in err
