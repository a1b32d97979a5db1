"""`letheon data`: downloads of benchmarks, and the made-up one."""

from pathlib import Path

import click

from letheon.settings import LARGEST_SEED


@click.group()
def data() -> None:
    """Download or make benchmark data."""


@data.command("lume")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
def data_lume(folder: Path) -> None:
    """Download the LUME rows (Apache-2.0) and cut them by the task's split ids."""
    from letheon.data.benchmarks.lume import download_lume

    for path in download_lume(folder):
        click.echo(path)


@data.command("tofu")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
def data_tofu(folder: Path) -> None:
    """Download TOFU (MIT) from the Hugging Face hub: all splits, with paraphrased and wrong answers."""
    from letheon.data.benchmarks.tofu import changed_files, download_tofu

    for path in download_tofu(folder):
        click.echo(path)
    changed = changed_files(folder)
    if changed:
        click.echo(
            f"letheon: {', '.join(changed)}: the rows are not those of the release known here; scores on them cannot "
            "be compared with published ones",
            err=True,
        )


@data.command("wmdp")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
def data_wmdp(folder: Path) -> None:
    """Download the questions of WMDP (MIT) from the Hugging Face hub."""
    from letheon.data.benchmarks.wmdp import download_wmdp

    for path in download_wmdp(folder):
        click.echo(path)


@data.command("muse")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--corpus", default="news", show_default=True, type=click.Choice(["news", "books"]), help="Which texts.")
def data_muse(folder: Path, corpus: str) -> None:
    """Download a corpus of MUSE from the Hugging Face hub."""
    from letheon.data.benchmarks.muse import download_muse

    for path in download_muse(folder, corpus):
        click.echo(path)


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
