"""`letheon data`: downloads of benchmarks, and the made-up one."""

from importlib import import_module
from pathlib import Path

import click

from letheon.data.benchmarks.downloading import Download
from letheon.settings import LARGEST_SEED
from letheon.settings.suites import reader_names


class _Benchmarks(click.Group):
    """The commands below, and one for each reader that declares a download."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(name for name in reader_names() if _download_of(name))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        download = None if own is not None or cmd_name not in reader_names() else _download_of(cmd_name)
        return own if download is None else _command_of(cmd_name, download)


@click.group(cls=_Benchmarks)
def data() -> None:
    """Download or make benchmark data."""


@data.command("lume")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
def data_lume(folder: Path) -> None:
    """Download the LUME rows (Apache-2.0) and cut them by the task's split ids."""
    from letheon.data.benchmarks.lume import download_lume

    for path in download_lume(folder):
        click.echo(path)


def _download_of(name: str) -> Download | None:
    found: Download | None = getattr(import_module(f"letheon.data.benchmarks.{name}"), "DOWNLOAD", None)
    return found


def _command_of(name: str, download: Download) -> click.Command:
    def fetch(folder: Path, corpus: str = "") -> None:
        for path in download.fetch(folder, corpus):
            click.echo(path)
        doubt = download.doubt(folder)
        if doubt is not None:
            click.echo(f"letheon: {doubt}", err=True)

    options: list[click.Parameter] = [
        click.Option(["--to", "folder"], required=True, type=click.Path(path_type=Path), help="Folder to write to.")
    ]
    if download.parts:
        choice = click.Choice(download.parts)
        options.append(
            click.Option(["--corpus"], default=download.parts[0], show_default=True, type=choice, help="Which texts.")
        )
    return click.Command(name, callback=fetch, params=options, help=download.help)


@data.command("synthetic")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--size", default="default", show_default=True, metavar="NAME", help="tiny, small or default.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, LARGEST_SEED), help="Seed of everything in it."
)
def data_synthetic(folder: Path, size: str, seed: int) -> None:
    """Make the made-up benchmark: rows to forget and keep, documents, general facts in MMLU's format."""
    from letheon.data.benchmarks.synthetic import generate, write

    write(generate(seed, size=size), folder)
    click.echo(folder)
