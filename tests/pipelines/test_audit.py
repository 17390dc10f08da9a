from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from anomaly.core.errors import BundleError, InputError
from anomaly.core.files import read_json, sha256_of_file, write_json
from pipelines.audit import verify
from pipelines.calibrate import calibrate
from pipelines.cli import app
from pipelines.common import Exit
from pipelines.ensemble import ensemble
from pipelines.evaluate import evaluate
from pipelines.report import report
from pipelines.score import ScoreRequest, score
from pipelines.train import train
from tests.pipelines.cohorts import add_refused, make_cohort, write_config
from tests.pipelines.conftest import Trained

RUN_FILES = [
    "run.json", "scores.parquet", "scores.tsv", "refused_failed.tsv", "files.json", "audit.jsonl",
    "sub-300_T1w/score.json", "sub-300_T1w/sub-300_T1w_desc-anomaly_map.nii.gz",
    "sub-300_T1w/sub-300_T1w_desc-flagged_mask.nii.gz", "sub-300_T1w/sub-300_T1w_space-template_volumes.npz",
    "sub-bad_T1w/score.json",
]  # fmt: skip
MODEL_FILES = [
    "metadata.json", "config.yaml", "weights.safetensors", "reference.safetensors", "training_subjects.json",
    "MODEL_CARD.md", "reference_scores.parquet", "audit.jsonl",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two scans and a refused one."""
    folder = tmp_path_factory.mktemp("finished")
    cohort = make_cohort(folder / "cohort", [300, 301])
    bad = make_cohort(folder / "bad", [])
    add_refused(bad, [])
    score(ScoreRequest(trained.model, (cohort, bad), folder / "run", alpha=0.05))
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def model(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.model, tmp_path / "model"))


def disagreeing(folder: Path) -> set[str]:
    return {one["file"].split(",")[0] for one in verify(folder)["disagreeing"]}


def edit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_and_a_model_are_verified_as_they_were_written(run: Path, model: Path) -> None:
    of_run, of_model = verify(run), verify(model)
    assert (of_run["verified"], of_run["kind"], of_run["files"]) == (True, "run", 5 + 2 * 4 + 1)
    assert (of_model["verified"], of_model["kind"]) == (True, "model")
    assert of_model["files"] == len(MODEL_FILES) - 1 + 2  # without the log, with two calibrations
    assert of_run["interrupted"] is None


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("change", [edit, Path.unlink], ids=["edited", "deleted"])
def test_a_file_of_a_run_that_was_changed_is_named(run: Path, name: str, change: Callable[[Path], None]) -> None:
    change(run / name)
    if name == "audit.jsonl" and change is Path.unlink:
        with pytest.raises(InputError, match=r"cannot be verified: found no audit\.jsonl"):
            verify(run)
        return
    assert name in disagreeing(run)
    assert name == "audit.jsonl" or disagreeing(run) == {name}  # the edit may be in a hash of the log
    assert not verify(run)["verified"]


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_file_of_a_model_that_was_changed_is_named(model: Path, name: str) -> None:
    edit(model / name)
    assert name in disagreeing(model)
    assert name == "audit.jsonl" or disagreeing(model) == {name}


def test_an_edited_or_added_or_removed_calibration_is_named(model: Path) -> None:
    first, second = sorted((model / "calibrations").iterdir())
    write_json(first, read_json(first) | {"threshold": 0.0})
    shutil.copy(second, first.with_name("cal-copy.json"))
    second.unlink()
    found = verify(model)
    assert disagreeing(model) == {f"calibrations/{path.name}" for path in (first, second)}
    assert found["not_sealed"] == ["calibrations/cal-copy.json"]


def test_swapped_files_of_two_scans_are_named(run: Path) -> None:
    names = [f"sub-{n}_T1w/sub-{n}_T1w_desc-anomaly_map.nii.gz" for n in (300, 301)]
    first, second = (run / name for name in names)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert disagreeing(run) == set(names)


def test_a_row_that_was_added_to_a_table_is_found(run: Path) -> None:
    with (run / "scores.tsv").open("a", encoding="utf-8") as stream:
        stream.write("sub-400_T1w\n")
    table = pd.read_parquet(run / "scores.parquet")
    pd.concat([table, table.head(1)]).to_parquet(run / "scores.parquet", index=False)
    assert disagreeing(run) == {"scores.tsv", "scores.parquet"}


def test_a_result_that_was_added_is_not_sealed(run: Path) -> None:
    shutil.copytree(run / "sub-300_T1w", run / "sub-400_T1w")
    found = verify(run)
    assert (found["verified"], found["disagreeing"], len(found["not_sealed"])) == (False, [], 4)


def test_a_list_that_was_edited_with_its_file_is_named(run: Path) -> None:
    name = "sub-300_T1w/score.json"
    write_json(run / name, read_json(run / name) | {"score": 0.0})
    write_json(run / "files.json", read_json(run / "files.json") | {name: sha256_of_file(run / name)})
    assert disagreeing(run) == {"files.json"}


def test_without_its_last_line_the_log_seals_nothing(run: Path) -> None:
    log = run / "audit.jsonl"
    head = verify(run)["head"]
    assert verify(run, head)["verified"]
    log.write_text("\n".join(log.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")
    found = verify(run)
    assert (found["verified"], found["disagreeing"], found["interrupted"]) == (False, [], "score")
    assert "run.json" in found["not_sealed"]
    assert verify(run, head)["disagreeing"][0]["found"] == "no line with the given head"


def test_a_result_that_was_edited_is_not_scored_on(run: Path, trained: Trained, tmp_path: Path) -> None:
    name = "sub-300_T1w/score.json"
    write_json(run / name, read_json(run / name) | {"score": 0.0})
    more = make_cohort(tmp_path / "more", [302])
    with pytest.raises(InputError, match=r"changed after they were written \(sub-300_T1w/score\.json\)"):
        score(ScoreRequest(trained.model, (more,), run, alpha=0.05))


def test_a_result_that_no_command_wrote_is_never_sealed(run: Path, trained: Trained, tmp_path: Path) -> None:
    forged = run / "forged" / "score.json"
    write_json(forged, read_json(run / "sub-300_T1w" / "score.json") | {"scan_id": "forged", "outputs": {}})
    request = ScoreRequest(trained.model, (make_cohort(tmp_path / "more", [302]),), run, alpha=0.05)
    for again in (request, replace(request, overwrite=True)):
        with pytest.raises(InputError, match=r"written by no command \(forged/score\.json\)"):
            score(again)
    assert verify(run)["not_sealed"] == ["forged/score.json"]


def test_a_result_that_was_damaged_is_made_again(finished: Path, run: Path, trained: Trained) -> None:
    (run / "sub-300_T1w" / "score.json").write_text('{"scan_id": ', encoding="utf-8")
    found = score(ScoreRequest(trained.model, (finished.parent / "cohort",), run, alpha=0.05))
    assert (found["scored"], found["failed"]) == (2, 0)
    assert verify(run)["verified"]


def test_overwriting_checks_the_results_that_it_keeps(finished: Path, run: Path, trained: Trained) -> None:
    for name in ("sub-300_T1w/score.json", "sub-bad_T1w/score.json"):
        write_json(run / name, read_json(run / name) | {"warnings": ["edited"]})
    request = ScoreRequest(trained.model, (finished.parent / "cohort",), run, alpha=0.05, overwrite=True)
    with pytest.raises(InputError, match=r"changed after they were written \(sub-bad_T1w/score\.json\)"):
        score(request)
    shutil.copy(finished / "sub-bad_T1w" / "score.json", run / "sub-bad_T1w")
    score(request)
    assert verify(run)["verified"]


def test_a_later_call_does_not_seal_what_was_changed_before(run: Path, trained: Trained, tmp_path: Path) -> None:
    name = "sub-300_T1w/sub-300_T1w_desc-anomaly_map.nii.gz"
    edit(run / name)
    score(ScoreRequest(trained.model, (make_cohort(tmp_path / "more", [302]),), run, alpha=0.05))
    assert disagreeing(run) == {name}


def test_an_interrupted_run_is_not_sealed_until_it_is_continued(trained: Trained, tmp_path: Path) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    cohort = make_cohort(tmp_path / "cohort", range(310, 314))
    request = ScoreRequest(trained.model, (cohort,), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        score(request, stop)
    found = verify(tmp_path / "run")
    assert (found["verified"], found["disagreeing"], found["interrupted"]) == (False, [], "score")
    assert "sub-310_T1w/score.json" in found["not_sealed"]

    score(request)
    assert verify(tmp_path / "run")["verified"]
    assert not (tmp_path / "run" / "files.partial.jsonl").exists()


def test_a_finished_run_that_is_overwritten_and_interrupted_can_be_continued(
    finished: Path, run: Path, trained: Trained
) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    request = ScoreRequest(trained.model, (finished.parent / "cohort",), run, alpha=0.05)
    with pytest.raises(KeyboardInterrupt):
        score(ScoreRequest(trained.model, request.sources, run, alpha=0.05, overwrite=True), stop)
    found = verify(run)
    assert (found["disagreeing"], found["interrupted"]) == ([], "score")
    assert "sub-300_T1w/score.json" in found["not_sealed"]
    score(request)
    assert verify(run)["verified"]


@pytest.mark.slow
def test_pages_and_evaluations_are_sealed_too(run: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("scan_id\tlabel\nsub-300_T1w\t0\nsub-301_T1w\t1\n", encoding="utf-8")
    for arguments in (["report", str(run), "--jobs", "1"], ["evaluate", str(run), "--labels", str(labels)]):
        assert CliRunner().invoke(app, arguments).exit_code == Exit.DONE
    assert verify(run)["verified"]
    page = run / "sub-300_T1w" / "report.html"
    edit(page)
    edit(run / "evaluation" / "metrics.json")
    assert disagreeing(run) == {"sub-300_T1w/report.html", "evaluation/metrics.json"}
    report(run, jobs=1)  # makes a page that was edited again
    assert disagreeing(run) == {"evaluation/metrics.json"}


@pytest.mark.slow
def test_pages_of_a_report_that_was_killed_before_it_was_sealed_are_made_again(run: Path) -> None:
    report(run, jobs=1)
    log = run / "audit.jsonl"
    before = log.read_text(encoding="utf-8")
    (run / "sub-300_T1w" / "report.html").unlink()
    report(run, jobs=1)
    log.write_text(before, encoding="utf-8")  # the list of pages is written, its entry is not
    report(run, jobs=1)
    assert verify(run)["verified"]


@pytest.mark.slow
def test_an_evaluation_seals_only_what_it_wrote(run: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("scan_id\tlabel\nsub-300_T1w\t0\nsub-301_T1w\t1\n", encoding="utf-8")
    evaluate(run, labels)
    edit(run / "evaluation" / "roc.png")
    (run / "evaluation" / "added.png").touch()
    labels.write_text("scan_id\tlabel\nsub-300_T1w\t0\nsub-301_T1w\t0\n", encoding="utf-8")
    evaluate(run, labels)  # with one class there is no ROC curve
    found = verify(run)
    assert disagreeing(run) == {"evaluation/roc.png"}
    assert found["not_sealed"] == ["evaluation/added.png"]


@pytest.mark.slow
def test_a_new_calibration_and_an_ensemble_are_sealed(trained: Trained, model: Path, tmp_path: Path) -> None:
    calibrate(model, trained.holdout, [0.2], "again")
    assert verify(model)["verified"]
    train(write_config(tmp_path / "intensity.yaml", "intensity"), trained.training, tmp_path / "intensity")
    ensemble([model, tmp_path / "intensity"], tmp_path / "both")
    assert verify(tmp_path / "both")["verified"]
    edit(tmp_path / "both" / "members" / "intensity" / "weights.safetensors")
    assert disagreeing(tmp_path / "both") == {"members/intensity/weights.safetensors"}


def killed(*arguments: object, **facts: object) -> None:
    raise KeyboardInterrupt


def kill_at_the_end(monkeypatch: pytest.MonkeyPatch, verb: str, call: Callable[[], object]) -> None:
    """Run a command that is killed when it notes in the audit log that it has finished."""
    module = importlib.import_module(f"pipelines.{verb}")
    note = module.audit
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "audit", lambda *a, **facts: (note if facts["event"] == "started" else killed)(*a, **facts)
        )
        with pytest.raises(KeyboardInterrupt):
            call()


def test_a_calibration_that_was_killed_is_sealed_by_the_next(
    trained: Trained, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        kill_at_the_end(monkeypatch, "calibrate", lambda: calibrate(model, trained.holdout, [0.2], "killed"))
    found = verify(model)
    assert (found["verified"], found["interrupted"], len(found["not_sealed"])) == (False, "calibrate", 2)
    calibrate(model, trained.holdout, [0.2], "again")
    found = verify(model)
    assert (found["verified"], found["interrupted"], found["not_sealed"]) == (True, None, [])


def test_a_calibration_that_was_killed_and_edited_stops_the_next(
    trained: Trained, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at_the_end(monkeypatch, "calibrate", lambda: calibrate(model, trained.holdout, [0.2], "killed"))
    left = model / verify(model)["not_sealed"][0]
    write_json(left, read_json(left) | {"threshold": 0.0})
    with pytest.raises(BundleError, match="threshold"):
        calibrate(model, trained.holdout, [0.2], "again")


def test_a_copied_calibration_is_never_sealed(trained: Trained, model: Path) -> None:
    other = Path(shutil.copytree(model, model.with_name("other")))
    calibrate(other, trained.holdout, [0.3], "elsewhere")
    name = (
        set(other.glob("calibrations/*")) - {other / path.relative_to(model) for path in model.glob("*/*")}
    ).pop()
    shutil.copy(name, model / "calibrations")
    calibrate(model, trained.holdout, [0.2], "again")
    assert verify(model)["not_sealed"] == [f"calibrations/{name.name}"]


def test_a_training_that_was_killed_at_the_end_is_finished_by_the_same_call(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output = write_config(tmp_path / "atlas.yaml"), tmp_path / "model"
    kill_at_the_end(monkeypatch, "train", lambda: train(config, trained.training, output))
    before = read_json(output / "metadata.json")
    assert (verify(output)["verified"], verify(output)["interrupted"]) == (False, "train")
    other = write_config(tmp_path / "intensity.yaml", "intensity")
    others = make_cohort(tmp_path / "others", range(20, 35))
    for of, cohort, seed in (
        (other, trained.training, None),
        (config, trained.training, 7),
        (config, others, None),
    ):
        with pytest.raises(BundleError, match="already holds a model"):
            train(of, cohort, output, seed=seed)
    summary = train(config, trained.training, output)
    assert (summary["model_id"], summary["family"]) == (before["model_id"], "atlas")
    assert summary["train_scans"] + summary["validation_scans"] == 15
    assert read_json(output / "metadata.json") == before
    assert (verify(output)["verified"], verify(output)["interrupted"]) == (True, None)
    with pytest.raises(BundleError, match="already holds a model"):
        train(config, trained.training, output)


def test_an_ensemble_that_was_killed_at_the_end_is_finished_by_the_same_call(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(write_config(tmp_path / "intensity.yaml", "intensity"), trained.training, tmp_path / "intensity")
    models, output = [trained.model, tmp_path / "intensity"], tmp_path / "both"
    kill_at_the_end(monkeypatch, "ensemble", lambda: ensemble(models, output))
    assert (verify(output)["verified"], verify(output)["interrupted"]) == (False, "ensemble")
    edited = Path(shutil.copytree(output, tmp_path / "edited" / "both"))
    write_json(edited / "metadata.json", read_json(edited / "metadata.json") | {"name": "edited"})
    with pytest.raises(BundleError, match="altered or damaged"):
        ensemble(models, edited)
    summary = ensemble(models, output)
    assert summary["members"] == "model, intensity"
    assert (verify(output)["verified"], verify(output)["interrupted"]) == (True, None)
    with pytest.raises(BundleError, match="already holds a model"):
        ensemble(models, output)


def test_a_folder_of_an_earlier_version_says_that_nothing_can_be_verified(run: Path) -> None:
    (run / "audit.jsonl").write_text('{"verb": "score"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a log without a chain, expected a chained log\. An earlier version"):
        verify(run)


def test_the_command_exits_with_4_and_lists_each_file_that_disagrees(run: Path) -> None:
    good = CliRunner().invoke(app, ["audit", "verify", str(run), "--json"])
    edit(run / "run.json")
    shutil.copytree(run / "sub-300_T1w", run / "sub-400_T1w")
    bad = CliRunner().invoke(app, ["audit", "verify", str(run)])
    none = CliRunner().invoke(app, ["audit", "verify", str(run / "sub-300_T1w")])

    assert (good.exit_code, json.loads(good.stdout)["verified"]) == (Exit.DONE, True)
    assert bad.exit_code == none.exit_code == Exit.BAD_INPUT
    assert "disagrees run.json: found " in bad.stderr
    assert "not sealed yet sub-400_T1w/score.json" in bad.stderr
    assert "cannot be verified" in none.stderr


def test_a_shipped_model_is_verified_by_its_name(shipped_model: Path) -> None:
    assert verify(Path("default"))["path"] == str(shipped_model)
    assert verify(Path("default"))["disagreeing_files"] == 0
