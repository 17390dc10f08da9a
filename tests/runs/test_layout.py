from pathlib import Path

from anomaly.runs.layout import run_info_path, score_path, volumes_path


def test_the_files_of_a_scan_lie_in_its_own_folder() -> None:
    run = Path("run")
    assert run_info_path(run) == run / "run.json"
    assert score_path(run, "sub-01_T1w") == run / "sub-01_T1w" / "score.json"
    assert volumes_path(run, "sub-01_T1w") == run / "sub-01_T1w" / "sub-01_T1w_space-template_volumes.npz"
