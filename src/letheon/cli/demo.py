"""The main job in one go: make rows, a model that knows them by heart, make it forget some, show what happened."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from letheon.api import evaluate, memorize, unlearn, write_report
from letheon.data.benchmarks.synthetic import BenchmarkFiles, generate, write
from letheon.errors import OutputError
from letheon.memorizing.memorize import shown_on
from letheon.progress import Display, open_display
from letheon.report.tables import before_after, pick_samples, side_by_side, to_rich
from letheon.scores.results import Evaluation
from letheon.settings import DemoSettings, EvaluateSettings, MemorizeSettings, UnlearnSettings
from letheon.signals import Interrupted
from letheon.storage.files import open_output_folder
from letheon.storage.run_folder import EVALUATIONS_FOLDER
from letheon.training.tracking import Shown
from letheon.unlearning.record import RunReport

NUM_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the demo's model is, and how it is unlearned."""

    width: int
    num_layers: int
    vocab_size: int
    learning_rate: float
    epochs: int
    max_new_tokens: int


PLANS = {
    "tiny": Plan(width=64, num_layers=2, vocab_size=1024, learning_rate=4e-3, epochs=15, max_new_tokens=48),
    "small": Plan(width=192, num_layers=2, vocab_size=2048, learning_rate=2e-3, epochs=15, max_new_tokens=64),
    "default": Plan(width=192, num_layers=2, vocab_size=2048, learning_rate=2e-3, epochs=15, max_new_tokens=64),
}

UNLEARNING: dict[str, Any] = {
    "method": "low-rank-npo",
    "learning_rate": 4e-3,
    "learning_rate_schedule": "linear",
    "max_gradient_norm": 1.0,
    "beta": 1.5,
    "delta": 1.0,
    "target_modules": "all-linear",
    "checkpoint_epochs": 1,
    "evaluate": False,
}
"""Low-rank NPO with larger steps and more adapted layers than at 7B, and a beta that lets go of a token sooner."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo made and found."""

    before: Evaluation
    after: Evaluation
    run: RunReport
    page: Path
    duration_s: float


def run_demo(settings: DemoSettings, *, console: Console) -> DemoReport:
    """Run the demo and print its tables.

    Raises:
        OutputError: the folder is in use or cannot be written.
        LetheonError: as the jobs that it is made of.
        Interrupted: a signal ended the unlearning; its state is saved, and nothing is scored.
    """
    started = time.monotonic()
    plan, out = PLANS[settings.size], settings.out
    open_output_folder(out, advice="choose another --out")
    if any(out.iterdir()):
        raise OutputError(f"{out}: already holds files; choose another --out or remove it")
    with stage(console, "making the benchmark"):
        files = write(generate(settings.seed, size=settings.size), out / "data")
    with stage(console, f"memorising it with a new {settings.architecture} model") as display:
        made = memorize(_target_settings(settings, plan, files), progress=shown_on(display))
    if not made.reached:
        console.print(f"  the target recalls {made.accuracy:.1%} of the answer tokens")
    with stage(console, "evaluating the target") as display:
        before = evaluate(_evaluate_settings(settings, plan, files, out / "target", "before"), progress=display.show)
    with stage(console, "unlearning") as display:
        run = unlearn(_unlearn_settings(settings, plan, files), observer=_Progress(display))
    if run.exit_code:
        raise Interrupted(run.exit_code - 128)  # scores of a run that was cut short would be no demonstration
    with stage(console, "evaluating the unlearned model") as display:
        after = evaluate(_evaluate_settings(settings, plan, files, run.model, "after"), progress=display.show)
    page = write_report(run.folder)
    report = DemoReport(before, after, run, page, time.monotonic() - started)
    show(report, console)
    return report


def show(report: DemoReport, console: Console) -> None:
    """Print the table before and after, sample rows, and where everything lies."""
    before, after = report.before, report.after
    console.print(to_rich(before_after(before.results, after.results)))
    ids = pick_samples(before.predictions, after.predictions, num_per_split=NUM_SAMPLES)
    console.print(to_rich(side_by_side(before.predictions, after.predictions, ids=ids, max_characters=160)))
    console.print(f"model   {report.run.model}\nreport  {report.page}", highlight=False, soft_wrap=True)
    console.print(
        f"{report.duration_s:.0f} s in all, of which {report.run.duration_s:.0f} s unlearning "
        f"(kept epoch {report.run.kept.epoch:g})",
        highlight=False,
    )


@contextmanager
def stage(console: Console, title: str) -> Iterator[Display]:
    """Show the current stage and how long it took."""
    started = time.monotonic()
    with open_display(console, title) as display:
        yield display
    console.print(f"{title}: {time.monotonic() - started:.0f} s", highlight=False)


@dataclass(frozen=True, slots=True)
class _Progress(Shown):
    """Shows steps and passes; the tables at the end show the findings."""

    def note(self, message: str) -> None:
        """Do nothing."""


def _target_settings(settings: DemoSettings, plan: Plan, files: BenchmarkFiles) -> MemorizeSettings:
    return MemorizeSettings.of(
        {
            "rows": (str(files.forget), str(files.retain), str(files.facts)),
            "text": files.text,
            "out": settings.out / "target",
            "architecture": settings.architecture,
            "width": plan.width,
            "num_layers": plan.num_layers,
            "vocab_size": plan.vocab_size,
            "learning_rate": plan.learning_rate,
            "seed": settings.seed,
        }
    )


def _unlearn_settings(settings: DemoSettings, plan: Plan, files: BenchmarkFiles) -> UnlearnSettings:
    return UnlearnSettings.of(
        {
            **UNLEARNING,
            "model": str(settings.out / "target"),
            "forget": str(files.forget),
            "retain": str(files.retain),
            "out": settings.out / "run",
            "cache_dir": settings.out / "cache",
            "epochs": plan.epochs,
            "seed": settings.seed,
        }
    )


def _evaluate_settings(
    settings: DemoSettings, plan: Plan, files: BenchmarkFiles, model: Path, name: str
) -> EvaluateSettings:
    return EvaluateSettings.of(
        {
            "model": str(model),
            "forget": str(files.forget),
            "retain": str(files.retain),
            "members": files.members,
            "nonmembers": files.nonmembers,
            "mmlu": files.mmlu,
            "max_new_tokens": plan.max_new_tokens,
            "out": settings.out / "run" / EVALUATIONS_FOLDER / name,
        }
    )
