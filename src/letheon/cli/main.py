"""The command line: thin, every flag made from the typed settings."""

import gc
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from letheon.cli.audit import audit
from letheon.cli.data import data
from letheon.cli.flags import MOST_USED, HeadedOption, SettingsCommand, given_values, settings_options
from letheon.cli.method_help import MethodCommand
from letheon.cli.study import study
from letheon.endings import Ending, run_to_end
from letheon.errors import without_secrets
from letheon.launcher import check_alone, is_launched
from letheon.processes import silent_unless_first
from letheon.progress import open_display
from letheon.settings import (
    DemoSettings,
    EvaluateSettings,
    MemorizeSettings,
    RedialSettings,
    RescoreSettings,
    UnlearnSettings,
)
from letheon.storage.run_folder import ADAPTER_FOLDER, MODEL_FOLDER
from letheon.storage.visible import visible_line

if TYPE_CHECKING:
    from letheon.scores.results import Results
    from letheon.scoring.run import UnlearnReport


TOGETHER = ("unlearn", "evaluate", "audit", "memorize")
"""Commands that several processes of a launcher do together."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="letheon")
@click.pass_context
def cli(context: click.Context) -> None:
    """Make a causal language model forget chosen rows, keep the rest, and prove it."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("letheon: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if context.invoked_subcommand not in (None, *TOGETHER):
        check_alone(f"letheon {context.invoked_subcommand}")


def main() -> NoReturn:
    """Run the command line and end the process with the exit code and the last line that endings.py decides on."""
    arguments = sys.argv[1:]

    def command(ending: Ending) -> Any:
        with silent_unless_first():
            return cli(arguments, standalone_mode=False, prog_name="letheon", obj=ending)

    code = run_to_end(command, arguments)
    if is_launched():
        # A launcher sends this to all when one has ended, and would make another code of ours.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


def _ending_of(context: click.Context) -> Ending:
    return context.find_object(Ending) or Ending()


class _PlainFormatter(logging.Formatter):
    """Log records as one line each, without control characters and secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        return visible_line(without_secrets(super().format(record)))


@cli.command(cls=MethodCommand)
@settings_options(UnlearnSettings)
@click.option(
    *("--recipe", "recipe"),
    cls=HeadedOption,
    heading=MOST_USED,
    metavar="NAME",
    help="Published settings; `letheon methods` lists them.",
)
@click.option(
    *("--plan", "plan"),
    cls=HeadedOption,
    heading=MOST_USED,
    is_flag=True,
    help="Print the memory and time needed, without running.",
)
@click.pass_context
def unlearn(context: click.Context, /, config: Path | None, recipe: str | None, plan: bool, **_: Any) -> None:
    """Make a model forget --forget and keep --retain; writes a report."""
    from letheon.recipes import recipe_settings

    published, given = ({} if recipe is None else recipe_settings(recipe)), given_values(context, config)
    values = {**published, **given}
    if isinstance(given.get("coefficients"), dict):
        values["coefficients"] = {**(published.get("coefficients") or {}), **given["coefficients"]}
    if plan:
        _print_plan(UnlearnSettings.of({"out": "run", **values}))
        return
    settings = UnlearnSettings.of(values)
    _ending_of(context).resumes_in = settings.out
    console = Console(stderr=True)
    with open_display(console, f"unlearning with {settings.method}") as display:
        load_libraries()
        from letheon.api import unlearn as run
        from letheon.training.tracking import Shown

        report = run(settings, observer=Shown(display))
    console.print(
        f"kept epoch {report.kept.epoch:g} ({report.reason}); {report.num_tokens} tokens in {report.duration_s:.0f} s, "
        f"peak memory {report.peak_memory_bytes / 2**30:.2f} GiB",
        highlight=False,
        soft_wrap=True,
    )
    if report.page is None:
        click.echo(report.model)
    else:
        _print_verdict(report)
    context.exit(report.exit_code)


@cli.command(cls=SettingsCommand)
@click.argument("run", type=click.Path(path_type=Path))
@settings_options(RedialSettings)
@click.pass_context
def dial(context: click.Context, /, config: Path | None, run: Path, **_: Any) -> None:
    """Scale the result of the finished run in RUN again."""
    given = {name: value for name, value in given_values(context, config).items() if name != "run"}
    settings = RedialSettings.of(given)
    with open_display(Console(stderr=True), f"dialling {run}") as display:
        load_libraries()
        from letheon.api import dial as set_dial
        from letheon.training.tracking import Shown

        set_dial(run, settings, observer=Shown(display))
    click.echo(run / MODEL_FOLDER)


@cli.command(cls=SettingsCommand)
@settings_options(EvaluateSettings, RescoreSettings)
@click.pass_context
def evaluate(context: click.Context, /, config: Path | None, **_: Any) -> None:
    """Score a model as LUME, TOFU, MUSE, WMDP or RWKU does, or re-score --predictions without a model."""
    values = given_values(context, config)
    if "predictions" in values:
        from letheon.evaluation.outputs import check_rescored
        from letheon.evaluation.rescoring import rescore, write_evaluation

        check_alone("letheon evaluate --predictions")
        rescoring = RescoreSettings.of(values)
        evaluation = rescore(rescoring.predictions)
        check_rescored(rescoring.out, evaluation.results, predictions=rescoring.predictions)
        write_evaluation(evaluation, rescoring.out)
    else:
        settings = EvaluateSettings.of(values)
        with open_display(Console(stderr=True), f"evaluating {settings.model}") as display:
            load_libraries()
            from letheon.api import evaluate as run

            evaluation = run(settings, progress=display.show, note=display.note)
            display.note(evaluation.results.provenance["model"]["precision"])
    _print_results(evaluation.results)


cli.add_command(audit)


@cli.command(cls=SettingsCommand)
@settings_options(MemorizeSettings)
@click.pass_context
def memorize(context: click.Context, /, config: Path | None, **_: Any) -> None:
    """Train a model until it has memorised --rows, to make a target for unlearning."""
    settings = MemorizeSettings.of(given_values(context, config))
    with open_display(Console(stderr=True), "memorising") as display:
        load_libraries()
        from letheon.api import memorize as run
        from letheon.memorizing.memorize import shown_on

        report = run(settings, progress=shown_on(display), note=display.note)
    state = "memorised" if report.reached else "not fully memorised"
    click.echo(
        f"{state}: accuracy {report.accuracy:.4f} after {report.steps} steps, {report.duration_s:.0f} s", err=True
    )
    click.echo(settings.out)


cli.add_command(data)


@cli.command(cls=SettingsCommand)
@settings_options(DemoSettings)
@click.pass_context
def demo(context: click.Context, /, config: Path | None, **_: Any) -> None:
    """Watch a small model forget made-up people: less than two minutes on two cores, no network."""
    settings = DemoSettings.of(given_values(context, config))
    if not settings.out.exists():
        _ending_of(context).removed_first = settings.out
    load_libraries()
    from letheon.cli.demo import run_demo

    run_demo(settings, console=Console())


@cli.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print docs/methods.md, which describes all methods in full.")
def methods(name: str | None, markdown: bool) -> None:
    """List the unlearning methods with paper and defaults, or describe the method or recipe NAME."""
    from letheon.cli.methods_page import describe, list_methods, to_markdown

    if markdown:
        click.echo(to_markdown(), nl=False)
        return
    Console(highlight=False).print(describe(name) if name else list_methods())


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--show-paths", is_flag=True, help="Also name paths, command line and machine in the cards.")
def report(run: Path, show_paths: bool) -> None:
    """Write report.html and the cards in model/ and adapter/ from the result files of a run."""
    from letheon.api import write_report

    click.echo(write_report(run, show_paths=show_paths))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
def purge(run: Path, dry_run: bool) -> None:
    """Remove what a run, study or evaluation stored of the forget rows; keep model, adapter, scores and hashes."""
    from letheon.purging.purge import describe_purge
    from letheon.purging.purge import purge as remove

    for line in describe_purge(remove(run, dry_run=dry_run, note=_say), dry_run=dry_run):
        click.echo(visible_line(line))


cli.add_command(study)


def load_libraries() -> None:
    """Import the libraries of the jobs, and silence their progress bars; Letheon shows its own.

    What imports make is there to stay. The collector looks at it again and again while there is more of it, a quarter
    of the time that imports take, and with each full collection of a run later, unless it is told to leave it alone.
    """
    is_first = "letheon.api" not in sys.modules
    if is_first:
        gc.disable()
    _quiet_libraries()
    import letheon.api  # noqa: F401 - for what it imports

    if is_first:
        gc.freeze()
        gc.enable()


def _quiet_libraries() -> None:
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    hub_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _print_plan(settings: UnlearnSettings) -> None:
    load_libraries()
    from letheon.unlearning.planning import render
    from letheon.unlearning.reading import plan

    planned = plan(settings, note=_say)
    Console(highlight=False).print(render(planned.plan, planned.machine))
    if planned.refusal is not None:
        raise planned.refusal


def _say(message: str) -> None:
    click.echo(visible_line(message), err=True)


def _print_verdict(report: "UnlearnReport") -> None:
    """Print the scores before and after in short, what they mean, and where everything lies."""
    from letheon.report.summary import summarise
    from letheon.report.tables import to_rich
    from letheon.report.text import to_rich_text

    table, verdict = summarise(report.folder)
    console = Console(highlight=False)
    if table is not None:
        console.print(to_rich(table))
    console.print(to_rich_text(verdict.sentence), soft_wrap=True)
    if report.unscored is not None:
        _say(f"letheon: not scored: {report.unscored}")
    places = {"model": report.model, "adapter": report.folder / ADAPTER_FOLDER, "report": report.page}
    for name, path in places.items():
        if path is not None and path.exists():
            console.print(to_rich_text(f"{name:8}{path}"), soft_wrap=True)


def _print_results(results: "Results") -> None:
    from letheon.report.tables import compare, to_rich

    Console().print(to_rich(compare({"Value": results})))
