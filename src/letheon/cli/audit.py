"""The command `letheon audit`."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from letheon.cli.flags import SettingsCommand, given_values, settings_options
from letheon.errors import SettingsError
from letheon.progress import open_display
from letheon.settings import AuditSettings
from letheon.storage.run_folder import AUDIT_RESULTS_FILE, AUDITS_FOLDER
from letheon.storage.visible import visible_line


@click.command(cls=SettingsCommand)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings_options(AuditSettings)
@click.option("--plan", is_flag=True, help="List the attacks that would run, without running them.")
@click.pass_context
def audit(context: click.Context, /, config: Path | None, run: Path | None, plan: bool, **_: Any) -> None:
    """Attack the result of the run in RUN, or --model, and say whether the forget rows are gone, hidden or still there.

    The exit code is 0 whatever the verdict is, unless --fail-on names it.
    """
    given = {name: value for name, value in given_values(context, config).items() if name != "run"}
    if run is None and "model" not in given:
        raise SettingsError(
            "expected the folder of a run, or models and rows by --model, --before, --forget, --retain and --out; got "
            "neither"
        )
    with open_display(Console(stderr=True), f"auditing {run or given['model']}") as display:
        from letheon.cli.main import load_libraries

        load_libraries()
        from letheon.api import audit as attack
        from letheon.auditing.inputs import fails_on, settings_of_run
        from letheon.auditing.plan import plan_audit

        settings = AuditSettings.of(given) if run is None else settings_of_run(run, given)
        if plan:
            lines = plan_audit(settings, note=display.note)
        else:
            results = attack(settings, progress=display.show, note=display.note)
    if plan:
        click.echo("\n".join(map(visible_line, lines)))
        return
    from letheon.report.audit import print_audit

    print_audit(results, Console(highlight=False))
    click.echo(settings.out / AUDITS_FOLDER / AUDIT_RESULTS_FILE)
    context.exit(int(fails_on(settings, results.verdict)))
