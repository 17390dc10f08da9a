"""The command line. Each command imports what it needs, so that ``anomaly --help`` starts quickly."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anomaly import RESEARCH_USE_ONLY
from anomaly.core.errors import AnomalyError
from anomaly.core.locks import only_writer
from anomaly.core.processes import exit_code_of, interrupt_on_signals
from anomaly.core.progress import Progress, no_progress
from pipelines.common import Exit, exit_code


class _Commands(TyperGroup):
    """The commands. Whatever ends one early, an error or an interrupt, is reported as one line."""

    def invoke(self, ctx: Any) -> Any:
        with _errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="anomaly",
    cls=_Commands,
    help="Learn the appearance of healthy tissue in brain MRI and CT, and find new scans that differ from it, "
    f"with anomaly maps and p-values. {RESEARCH_USE_ONLY}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="ingest → train → calibrate → score → report: `anomaly COMMAND --help` shows an example of each.",
)

audit_app = typer.Typer(no_args_is_help=True, epilog="anomaly audit verify run/")
app.add_typer(audit_app, name="audit", help="Check that results are as the commands wrote them.")

Sources = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE…", help="image files, folders, BIDS, DICOM folders or zips, manifest.csv"),
]
MODEL_HELP = "The model bundle, or the name of a shipped model (see anomaly info)."
Jobs = Annotated[int, typer.Option(min=0, help="Processes that preprocess scans; 0 = one per core.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
AllowCommand = Annotated[
    bool,
    typer.Option(
        "--allow-command",
        help="Let the model run the program that its config names to extract brains; read it first.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command(epilog="anomaly ingest healthy/ extra.zip -o cohort/")
def ingest(
    sources: Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="The cohort folder to create or continue.")],
    preprocessing: Annotated[
        str, typer.Option(help="A shipped preprocessing (see anomaly info) or a YAML file.")
    ] = "t1w",
    modality: Annotated[
        str | None, typer.Option(help="Modality of scans if neither name nor header states it (T1w, CT, …).")
    ] = None,
    jobs: Jobs = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find, check and preprocess scans; refuse unsuitable ones with a reason."""
    from pipelines.ingest import ingest as run

    with _progress(quiet) as progress, only_writer(output):
        summary = run(sources, output, preprocessing=preprocessing, modality=modality, jobs=jobs, progress=progress)
    _print_summary(summary.as_dict(), as_json, refused=summary.refused + summary.failed)


@app.command(epilog="anomaly train --config dae --cohort cohort/ -o model/")
def train(
    cohort: Annotated[Path, typer.Option(help="An ingested cohort of healthy scans.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model bundle to create.")],
    config: Annotated[str, typer.Option(help="A shipped config (see anomaly info) or a YAML file.")] = "dae",
    preprocessing: Annotated[
        str | None, typer.Option(help="Replaces the preprocessing of the config: a shipped name or a YAML file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the seed of the config.")] = None,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Number of devices for data-parallel training.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network first: faster training steps, mainly on a GPU.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on healthy scans. If interrupted, run the same command again to continue."""
    from pipelines.train import train as run

    with _progress(quiet) as progress, only_writer(output):
        summary = run(
            config,
            cohort,
            output,
            preprocessing=preprocessing,
            seed=seed,
            device=device,
            devices=devices,
            compiled=compiled,
            progress=progress,
        )
    _print_summary(summary, as_json)


@app.command(epilog="anomaly ensemble dae/ pca/ vae/ -o ensemble/ --how fisher")
def ensemble(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL…", help="Model bundles or names of shipped models, at least two.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model bundle to create.")],
    how: Annotated[str, typer.Option(help="How p-values are combined: fisher, bonferroni or mean.")] = "fisher",
    p_values: Annotated[str, typer.Option(help="p-value of a member: student or conformal.")] = "student",
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NAME=W", help="Weight of the map of a member; default 1.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Combine trained models into an ensemble, which is calibrated and used like a single model."""
    from anomaly.scoring.ensemble import MergeSettings
    from pipelines.ensemble import ensemble as run

    weights = dict(item.partition("=")[::2] for item in weight or ())
    merge = MergeSettings.parse({"how": how, "p_values": p_values, "weights": weights}, "ensemble")
    with only_writer(output):
        summary = run(models, output, merge)
    _print_summary(summary, as_json)


@app.command(epilog='anomaly adapt model/ --cohort local_healthy/ -o model_here/ --reason "scanner B, autumn 2026"')
def adapt(
    model: Annotated[Path, typer.Argument(help="The model bundle, or an ensemble.")],
    cohort: Annotated[
        Path, typer.Option(help="8 to 20 healthy scans of the other scanner: an ingested cohort, or raw scans.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model bundle to create.")],
    reason: Annotated[str, typer.Option(help="Reason, scanner and population; stored in the model.")],
    jobs: Jobs = 0,
    device: Device = "auto",
    allow_command: AllowCommand = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Adapt a model to another scanner with a few healthy scans, without training. Then calibrate it there."""
    from pipelines.adapt import adapt as run

    with _progress(quiet) as progress, only_writer(output):
        summary = run(
            model, cohort, output, reason, jobs=jobs, device=device, allow_command=allow_command,
            progress=progress,
        )  # fmt: skip
    _print_summary(summary, as_json, refused=summary["refused"])


@app.command(
    epilog='anomaly calibrate model/ --cohort healthy_holdout/ --alpha 0.05 --reason "scanner A, autumn 2026"'
)
def calibrate(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    cohort: Annotated[Path, typer.Option(help="Held-out healthy scans: an ingested cohort, or raw scans.")],
    reason: Annotated[str, typer.Option(help="Reason, scanner and population; stored in the calibration record.")],
    alpha: Annotated[
        list[float] | None, typer.Option(help="Target false-positive rate (FPR); may be repeated. Default 0.05.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Calibrate a copy of the model in this folder; the model stays as it is."
        ),
    ] = None,
    jobs: Jobs = 0,
    device: Device = "auto",
    allow_command: AllowCommand = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Set the threshold for a target false-positive rate, on healthy scans the model has not seen."""
    from anomaly.bundle.shipped import find_model
    from pipelines.calibrate import calibrate as run
    from pipelines.calibrate import folder_to_change

    source = find_model(model)
    with _progress(quiet) as progress, only_writer(folder_to_change(source, output), on_wait=_print_error):
        summary = run(
            source, cohort, alpha or [0.05], reason, output=output, jobs=jobs, device=device,
            allow_command=allow_command, progress=progress,
        )  # fmt: skip
    _print_summary(summary, as_json, refused=summary["refused"])


@app.command(epilog="anomaly score model/ new_scans/ -o run/ | anomaly score default new_scans/ -o run/")
def score(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    sources: Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder to create or continue.")],
    alpha: Annotated[float | None, typer.Option(help="Use the newest calibration with this target FPR.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Use the calibration with this id.")] = None,
    split: Annotated[str | None, typer.Option(help="Only scans of this split of the cohort or manifest.")] = None,
    jobs: Jobs = 0,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option(help="Score scans again that already have a result.")] = False,
    allow_command: AllowCommand = False,
    fail_on_flag: Annotated[bool, typer.Option(help="Exit with 6 if any scan is flagged.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score new scans. If interrupted, run the same command again to continue."""
    from pipelines.score import ScoreRequest
    from pipelines.score import score as run

    request = ScoreRequest(
        model=model, sources=tuple(sources), output=output, alpha=alpha, calibration=calibration, split=split,
        jobs=jobs, device=device, overwrite=overwrite, allow_command=allow_command,
    )  # fmt: skip
    with _progress(quiet) as progress, only_writer(output):
        summary = run(request, progress=progress)
    if summary["calibration_id"] is None:
        _print_error(
            "This model has no calibration: scans are scored but not flagged. Run `anomaly calibrate` first."
        )
    flagged = fail_on_flag and summary["flagged"] > 0
    _print_summary(summary, as_json, refused=summary["refused"] + summary["failed"], flagged=flagged)


@app.command(epilog="anomaly report run/ --pdf")
def report(
    run: Annotated[Path, typer.Argument(help="The run folder of `anomaly score`.")],
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write the pages as PDF.")] = False,
    flagged_only: Annotated[bool, typer.Option(help="Write pages for flagged scans only.")] = False,
    jobs: Jobs = 0,
    quiet: Quiet = False,
) -> None:
    """Write the worklist and one page per scan."""
    from pipelines.report import report as make

    with _progress(quiet) as progress, only_writer(run):
        index = make(run, pdf=pdf, cases="flagged" if flagged_only else "all", jobs=jobs, progress=progress)
    typer.echo(index)


@app.command(epilog="anomaly evaluate run/ --labels labels.tsv")
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder of `anomaly score`.")],
    labels: Annotated[Path, typer.Option(help="TSV with scan_id or subject, label (0/1), mask (optional).")],
    masks: Annotated[Path | None, typer.Option(help="Folder that mask paths are relative to.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: RUN/evaluation.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare a run with labels: detection, localisation and false-positive rate, with confidence intervals."""
    from pipelines.evaluate import evaluate as measure

    folder = output or run / "evaluation"
    with _progress(quiet) as progress, only_writer(folder):
        result = measure(run, labels, masks, folder, progress=progress)
    _print_summary(result, as_json)


@audit_app.command(epilog="anomaly audit verify run/ | anomaly audit verify model/ --json")
def verify(
    path: Annotated[Path, typer.Argument(help="A run folder, a model bundle, or the name of a shipped model.")],
    head: Annotated[
        str | None, typer.Option(help="Hash of a line of the log that was noted earlier; it must still be there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the audit log and the files that it seals; exit with 4 unless all agree."""
    from pipelines.audit import verify as run

    found = run(path, head)
    _print_summary(found, as_json)
    for wrong in found["disagreeing"]:
        _print_error(f"disagrees {wrong['file']}: found {wrong['found']}; expected {wrong['expected']}")
    for name in found["not_sealed"]:
        _print_error(f"not sealed yet {name}: no finished command of the log wrote it")
    if not found["verified"]:
        raise typer.Exit(Exit.BAD_INPUT)


@app.command(epilog="anomaly benchmark --config sample -o benchmark/")
def benchmark(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for models, runs and the comparison.")],
    config: Annotated[str, typer.Option(help="A shipped benchmark (see anomaly info) or a YAML file.")] = "sample",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder that paths in the config are relative to; default: that of the config, or sample_data."
        ),
    ] = None,
    jobs: Jobs = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train and evaluate several models on the same scans; write one comparison table."""
    from pipelines.benchmark.run import benchmark as compare

    with _progress(quiet) as progress, only_writer(output):
        table = compare(config, output, data=data, jobs=jobs, device=device, progress=progress)
    typer.echo(table.read_text(encoding="utf-8"))


@app.command(epilog="anomaly validate mnist | anomaly validate avatars --family vae --family dae -o validation/")
def validate(
    task: Annotated[
        str, typer.Argument(help="digits, mnist or avatars (runs NAME-small unless --full), or a YAML file.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to create or continue; default validation/CONFIG."),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Only this family, or this model of the task; may be repeated.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Run the full task instead of the small one; hours on a CPU.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option(help="Download MNIST from openml.org if ANOMALY_DATA does not contain it.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Models trained in parallel; 0 = one per core.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check the model families on digits or avatars, for which the ground truth is known."""
    from pipelines.validation.run import validate as run

    config = task if full or task.endswith((".yaml", ".yml", "-small")) else f"{task}-small"
    folder = output or Path("validation") / Path(config).stem
    with _progress(quiet) as progress, only_writer(folder):
        result = run(
            config, folder, families=family or (), device=device, fetch=fetch, jobs=jobs, progress=progress
        )
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2, ensure_ascii=False))
    else:
        typer.echo(result.as_text())
        typer.echo(folder / "report.html")
    for failure in result.failures:
        _print_error(failure)
    if not result.passed:
        raise typer.Exit(Exit.THRESHOLD_MISSED)


@app.command(epilog="anomaly info | anomaly info vae | anomaly info model/")
def info(
    what: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model bundle, a shipped model, or a model config.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print the complete config, each key with its description.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show versions, devices, families, shipped models and configs, or describe a model or a model config."""
    from pipelines.info import as_text, describe, facts, full_config

    if full:
        if what is None:
            raise typer.BadParameter("--full needs a model or a model config, e.g. anomaly info dae --full")
        typer.echo(full_config(what), nl=False)
        return

    if what is not None:
        _print_summary(describe(what), as_json)
        return
    typer.echo(json.dumps(facts(), indent=2) if as_json else as_text(facts()))


def main() -> None:
    """Run the command line; the entry point of ``anomaly``."""
    interrupt_on_signals()
    app()


@contextmanager
def _errors() -> Iterator[None]:
    """Report an expected error or an interrupt as one line on standard error, and exit with its code."""
    try:
        yield
    except AnomalyError as error:
        _print_error(f"anomaly: {error}")
        raise typer.Exit(exit_code(error)) from error
    except OSError as error:  # of a file that is read, or of the standard output
        if error.errno in {None, errno.EPIPE}:
            raise
        _print_error(f"anomaly: {error}; make it readable or writable, then run the same command again")
        raise typer.Exit(Exit.BAD_INPUT) from error
    except KeyboardInterrupt as error:
        _print_error("anomaly: interrupted; finished results are saved, run the same command again to continue")
        raise typer.Exit(exit_code_of(error)) from error


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Yield a progress callback: a bar on a terminal, lines in a log file, nothing if quiet; on standard error."""
    if quiet or (not sys.stderr.isatty() and not os.environ.get("FORCE_COLOR")):
        yield _log_lines() if not quiet else no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total, message: bars.update(task, completed=done, total=total, description=message)


def _log_lines(every_seconds: float = 10.0) -> Progress:
    """Return a progress callback for log files, which writes a line at most every ``every_seconds``."""
    from time import monotonic

    last = monotonic()
    first: tuple[int, int, float] | None = None  # done, total and time at the first report of the current step

    def report(done: int, total: int, message: str) -> None:
        nonlocal first, last
        now = monotonic()
        if first is None or done < first[0] or total != first[1]:
            first = (done, total, now)
        if now - last >= every_seconds and done > first[0]:
            last = now
            left = (now - first[2]) / (done - first[0]) * (total - done)
            _print_error(f"{done}/{total} {message} ({_duration(left)} left)")

    return report


def _duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, e.g. ``"3 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_summary(summary: dict[str, Any], as_json: bool, refused: int = 0, flagged: bool = False) -> None:
    """Print a summary to standard output and refused scans to standard error; set the exit code."""
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        for key, value in summary.items():
            if not isinstance(value, dict | list | tuple):
                typer.echo(f"{key.replace('_', ' '):<28} {_as_text(value)}")
    for notice in summary.get("notices", ()):
        _print_error(f"notice: {notice}")
    for scan in summary.get("warnings", ()):
        for warning in scan["warnings"]:
            _print_error(f"warning {scan['scan_id']}: {warning}")
    for scan in [*summary.get("reasons", ()), *summary.get("not_scored", ())]:
        _print_error(f"{scan['status']} {scan['scan_id']}: {scan['reason']}; {scan['remedy']}")
    if flagged:
        raise typer.Exit(Exit.FLAGGED)
    if refused:
        raise typer.Exit(Exit.SCANS_REFUSED)


def _as_text(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


_print_error: Callable[[str], None] = lambda text: typer.echo(text, err=True)  # noqa: E731
