"""The command `letheon study`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from letheon.endings import FAILED
from letheon.storage.run_folder import STUDY_PAGE_FILE
from letheon.storage.visible import visible_line

if TYPE_CHECKING:
    from letheon.studies.spec import StudySettings
    from letheon.studies.study import StudyReport


@click.command()
@click.argument("file", required=False)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the study; a study that is there already is continued.",
)
@click.option("--model", metavar="TEXT", help="Checkpoint instead of the study's own; short for --set model=TEXT.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting of all runs, "
              "evaluate.NAME, or one of the study itself, such as seeds.")  # fmt: skip
@click.option(
    "--storage", metavar="URL", help="Database of a search, for use from many machines [a journal file in --out]."
)
@click.option("--retry-failed", is_flag=True, help="Try failed and diverged runs again.")
@click.option("--report-only", is_flag=True, help="Write tables and figures of the finished runs; run nothing.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Runs at a time, each in a process of its own [1].",
)
@click.option("--list", "lists", is_flag=True, help="Print only the ids of the runs still to do, one per line.")
@click.option("--run", "identity", metavar="ID", help="Run only the run with this id, e.g. as a job of a scheduler.")
@click.pass_context
def study(
    context: click.Context,
    /,
    *,
    file: str | None,
    out: Path,
    model: str | None,
    changes: tuple[str, ...],
    storage: str | None,
    retry_failed: bool,
    report_only: bool,
    jobs: int,
    lists: bool,
    identity: str | None,
) -> None:
    """Run the study in FILE, or a built-in one by its name: many settings, many seeds, tables, figures.

    The exit code is 0 when all runs are done, 1 when some or all failed or diverged, 143 or 130 after a signal.
    """
    from letheon.studies.spec import read_study, study_path

    if file is None and not report_only:
        raise click.UsageError("Missing argument 'FILE'.", context)
    chosen = {"--report-only": report_only, "--jobs": jobs > 1, "--list": lists, "--run": identity is not None}
    if sum(chosen.values()) > 1:
        named = " and ".join(name for name, is_given in chosen.items() if is_given)
        raise click.UsageError(f"expected at most one of {', '.join(chosen)}, got {named}", context)
    changes = (*changes, *((f"model={model}",) if model else ()))
    settings = read_study(study_path(file), changes=changes) if file else None
    if report_only:
        from letheon.evaluation.outputs import check_is_folder
        from letheon.studies.history import describe_unshown
        from letheon.studies.report import print_study, report_study

        check_is_folder(out)
        unshown = None if settings is None else describe_unshown(settings, out)
        if unshown is not None:
            click.echo(visible_line(f"letheon: {unshown}"), err=True)

        print_study(report_study(out, settings=settings), Console())
        return
    assert settings is not None, "FILE was seen to be given"
    given = [str(file), "--out", str(out), *(part for change in changes for part in ("--set", change))]
    given += ["--storage", storage] if storage else []
    if lists:
        _list(settings, out, retry=retry_failed)
    elif identity is not None:
        context.exit(_run_one(settings, out, identity, retry=retry_failed))
    else:
        code = _run_all(settings, out, given, storage=storage, retry=retry_failed, num_jobs=jobs)
        context.exit(code)


def _list(settings: "StudySettings", out: Path, *, retry: bool) -> None:
    from letheon.cli.main import load_libraries

    load_libraries()
    from letheon.api import study_runs_to_do

    for identity in study_runs_to_do(settings, out, retry=retry):
        click.echo(identity)


def _run_one(settings: "StudySettings", out: Path, identity: str, *, retry: bool) -> int:
    from letheon.cli.main import load_libraries
    from letheon.studies.live import open_view

    with open_view(settings.name, Console(stderr=True)) as view:
        load_libraries()
        from letheon.api import study_run

        report = study_run(settings, out, identity, view=view, retry=retry)
    _tell(report)
    return report.exit_code


def _run_all(
    settings: "StudySettings", out: Path, given: Sequence[str], *, storage: str | None, retry: bool, num_jobs: int
) -> int:
    """Run what is missing, write tables and pages, and return the exit code; `given` is the command without flags."""
    from letheon.cli.main import load_libraries
    from letheon.studies.live import open_view
    from letheon.studies.report import print_study

    ended = 0
    with open_view(settings.name, Console(stderr=True)) as view:
        load_libraries()
        from letheon.api import study as run

        if num_jobs > 1:
            from letheon.api import study_side_by_side

            ended = study_side_by_side(settings, out, given, num_jobs=num_jobs, view=view, retry=retry)
            if ended > FAILED:
                return ended
        trains = num_jobs == 1 or bool(settings.search)
        report = run(settings, out, view=view, storage=storage, retry=retry and num_jobs == 1, trains=trains)
    print_study(report.record, Console())
    _tell(report)
    click.echo(out / STUDY_PAGE_FILE)
    return report.exit_code or ended


def _tell(report: "StudyReport") -> None:
    if report.num_elsewhere:
        click.echo(f"{report.num_elsewhere} runs are in progress in another process", err=True)
    if report.num_failed:
        click.echo(
            f"{report.num_failed} of {len(report.record.runs)} runs failed, diverged or could not be scored; "
            "--retry-failed tries them again",
            err=True,
        )
