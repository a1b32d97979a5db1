"""report.html: the settings of a run, its results, and how far the numbers can be trusted.

The page is one file. Its styles are bound by hash in its content security policy, scripts and requests are forbidden,
and every text in it that came from a file is escaped with its invisible characters made visible.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from letheon.evaluation.registry import suites
from letheon.evaluation.suite import Reading
from letheon.report.audit import AuditSection, audit_section
from letheon.report.dial_figure import dial_facts
from letheon.report.evidence import Facts, coverage, evaluation_facts, general_of, history, result_facts, run_ending
from letheon.report.figures import figure_svgs
from letheon.report.files import InterimRecord, RunFiles, flat_items, read_run
from letheon.report.gaps import Gap, gaps_of
from letheon.report.html import render_page
from letheon.report.pairing import doubt, refusal
from letheon.report.tables import (
    Cell,
    Table,
    before_after,
    compare,
    paired_predictions,
    pick_samples,
)
from letheon.report.verdict import (
    FORGOTTEN_SHARE,
    KEPT_SHARE,
    RunStart,
    Verdict,
    attacks_in,
    evaluation_summary,
    membership_reading,
    verdict,
)
from letheon.scores.numbers import chance_auc_error, expected_perfect_score
from letheon.scores.predictions import Prediction
from letheon.scores.score import Score, Scores
from letheon.settings import DEFAULT_SUITE
from letheon.storage.run_folder import (
    REPORT_FILE,
    write_entry,
)

_SAMPLES_PER_SPLIT = 4
_ASKED_FIRST = ("method", "model", "forget", "retain")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the run beside its default, as text; the default is None where none is known."""

    name: str
    value: str
    default: str | None
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One row with its generations; `sides` are (heading, prediction or None)."""

    row: Prediction
    sides: tuple[tuple[str, Prediction | None], ...]


@dataclass(frozen=True, slots=True)
class Membership:
    """One membership attack and what it means."""

    heading: str
    scores: tuple[Score, ...]
    """The attack's score and those made of it."""
    beside: Mapping[str, float]
    reading: str
    sizes: tuple[int, ...]
    chance_error: float | None
    """Of an AUC over so many documents; None where they are not told."""
    perfect_score: float | None


@dataclass(frozen=True, slots=True)
class Page:
    """What the template shows."""

    title: str
    verdict: Verdict
    forgotten_percent: int
    kept_percent: int
    is_evaluation_only: bool
    asked: tuple[tuple[str, str], ...]
    settings: tuple[Setting, ...]
    scores: Table
    stand_in: Table | None
    """The recalls that the run took of itself, where an evaluation is missing."""
    stands_for: str
    """Which evaluation that is: "before unlearning", "after unlearning", or nothing for both."""
    figures: dict[str, Markup]
    readings: tuple[Reading, ...]
    memberships: tuple[Membership, ...]
    samples: tuple[Sample, ...]
    gaps: tuple[Gap, ...]
    run_facts: tuple[tuple[str, str], ...]
    log_notes: tuple[str, ...]
    evaluations: tuple[tuple[str, Facts], ...]
    """What each evaluation in the folder scored, by what is found of it."""
    coverage: Facts
    history: Facts
    result: Facts
    """Fingerprints of what the run left."""
    provenance: tuple[tuple[str, str], ...]
    audit: AuditSection | None


def write_report(run: Path, *, defaults: Mapping[str, object] | None = None) -> Path:
    """Write report.html, its owner's alone since it shows rows, for a run or an evaluation alone; return its path.

    `defaults` are the default values of the run's settings, by name; with them the settings that differ come first.

    Raises:
        EvaluationError: the folder holds nothing to report, or a file in it cannot be read.
        OutputError: the page cannot be written.
    """
    write_entry(run, REPORT_FILE, render(read_run(run), defaults=defaults or {}))
    return run / REPORT_FILE


def render(run: RunFiles, *, defaults: Mapping[str, object]) -> str:
    """Return the page's HTML; the same files give the same text."""
    page = _page(run, defaults)
    return render_page("report.html.j2", page, title=page.title)


def _page(run: RunFiles, defaults: Mapping[str, object]) -> Page:
    before, after = (side.results if side else None for side in (run.before, run.after))
    return Page(
        title=_title(run),
        verdict=judge(run),
        forgotten_percent=round(100 * FORGOTTEN_SHARE),
        kept_percent=round(100 * KEPT_SHARE),
        is_evaluation_only=run.is_evaluation_only,
        asked=_asked(run),
        settings=list_settings(run.settings, defaults),
        scores=compare({"Value": after}) if run.is_evaluation_only and after else before_after(before, after),
        stand_in=_stand_in(run),
        stands_for=" ".join(f"{name} unlearning" for name, side in (("before", before), ("after", after)) if not side)
        if before or after
        else "",
        figures={name: Markup(svg) for name, svg in figure_svgs(run).items()},  # noqa: S704
        readings=_readings(run),
        memberships=_memberships(run),
        samples=_samples(run),
        gaps=gaps_of(run),
        run_facts=(*_run_facts(run), *dial_facts(run)),
        log_notes=run.log.notes if run.log else (),
        evaluations=evaluation_facts(run),
        coverage=coverage(run),
        history=history(run),
        result=result_facts(run),
        provenance=_provenance(run),
        audit=audit_section(run),
    )


def judge(run: RunFiles) -> Verdict:
    """Return the sentence on what a run, or an evaluation alone, has shown."""
    before, after = (side.results if side else None for side in (run.before, run.after))
    if run.is_evaluation_only and after:
        return evaluation_summary(after, contradictions=run.contradictions)
    return verdict(
        before,
        after,
        start=run_start(run),
        ending=run_ending(run),
        refusal=refusal(run.pairings),
        doubt=doubt(run.pairings),
        general=general_of(run),
    )


def run_start(run: RunFiles) -> RunStart | None:
    """Return how well the model knew the rows before the run; None where the log does not say."""
    before = run.log.start.get("before") if run.log else None
    unknown = run.log.start.get("unknown") if run.log else None
    if not isinstance(before, Mapping) or not isinstance(unknown, list):
        return None
    recalls = {side: before.get(f"{side}_recall") for side in ("forget", "retain")}
    return RunStart(
        template=str(run.log.start.get("template")) if run.log else "",
        recalls={side: float(value) for side, value in recalls.items() if isinstance(value, int | float)},
        unknown=tuple(str(side) for side in unknown),
    )


def _stand_in(run: RunFiles) -> Table | None:
    """The recalls before the first step and of each state that was scored, if a run was not evaluated on both sides."""
    if run.is_evaluation_only or run.log is None or not run.log.interims or (run.before and run.after):
        return None
    start = run_start(run)
    first = tuple(start.recalls.get(side) for side in ("forget", "retain")) if start else (None, None)
    kept = (run.log.end or {}).get("kept_epoch")
    rows: list[tuple[Cell, ...]] = [("before the first step", "", *first, None)]
    for one in run.log.interims:
        rows.append((f"epoch {one.epoch:g}", "kept" if one.epoch == kept else "", *_values(one)))
    return Table("", ("State", "", "Forget recall", "Retain recall", "Score"), tuple(rows))


def _values(one: InterimRecord) -> tuple[Cell, ...]:
    return one.forget_recall, one.retain_recall, one.score


def _title(run: RunFiles) -> str:
    model = run.settings.get("model") or next((r.model for _, r in run.evaluations), None)
    action = "Evaluation" if run.is_evaluation_only else "Unlearning"
    return f"{action} report: {model}" if model else f"{action} report"


def _provenance(run: RunFiles) -> tuple[tuple[str, str], ...]:
    command = run.provenance.get("command")
    typed = {"command": shlex.join(map(str, command))} if isinstance(command, list) else {}
    rest = {name: value for name, value in run.provenance.items() if name != "attempts"}  # they have lines of their own
    return tuple(flat_items({**rest, **typed}))


def _asked(run: RunFiles) -> tuple[tuple[str, str], ...]:
    asked = [(name, str(run.settings[name])) for name in _ASKED_FIRST if run.settings.get(name) is not None]
    known = run.evaluations
    if known and not asked:
        asked = [("model", known[0][1].model), ("suite", known[0][1].suite)]
    for name, counts in known[-1][1].num_rows.items() if known else ():
        asked.append((f"{name} rows scored", ", ".join(f"{number} {kind}" for kind, number in counts.items())))
    return tuple(asked)


def list_settings(settings: Mapping[str, object], defaults: Mapping[str, object]) -> tuple[Setting, ...]:
    """Return settings beside their defaults, those that differ first."""
    listed = [
        Setting(
            name,
            _plain(value),
            _plain(defaults[name]) if name in defaults else None,
            name in defaults and _plain(value) != _plain(defaults[name]),
        )
        for name, value in settings.items()
    ]
    return tuple(sorted(listed, key=lambda setting: not setting.is_changed))


def _plain(value: object) -> str:
    """Return a value as text; a tuple reads as the list that YAML makes of it, 5 as 5.0, a path as its text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    return "none" if value is None else str(value)


def _readings(run: RunFiles) -> tuple[Reading, ...]:
    """Return how the scores of the suites that were asked are to be read."""
    names = dict.fromkeys(results.suite for _, results in run.evaluations) or {DEFAULT_SUITE: None}
    known = suites()
    return tuple(reading for name in names if name in known for reading in known[name].readings)


def _memberships(run: RunFiles) -> tuple[Membership, ...]:
    found = [(name, results.scores) for name, results in run.evaluations]
    return tuple(_membership(name, attack, scores) for name, scores in found for attack in attacks_in(scores))


def _membership(heading: str, attack: Score, scores: Scores) -> Membership:
    group = attack.name.rpartition(".")[0]
    own = [s for s in scores.of("privacy") if s.value is not None and s.name.rpartition(".")[0] == group]
    has_sizes = len(attack.sizes) == 2 and attack.better == 0.5
    return Membership(
        heading,
        tuple(own),
        attack.beside,
        membership_reading(attack),
        attack.sizes,
        chance_auc_error(*attack.sizes) if has_sizes else None,
        expected_perfect_score(*attack.sizes) if has_sizes else None,
    )


def _samples(run: RunFiles) -> tuple[Sample, ...]:
    before = run.before.telling if run.before else ()
    after = run.after.telling if run.after else ()
    ids = pick_samples(before, after, num_per_split=_SAMPLES_PER_SPLIT)
    return tuple(
        Sample(row, (("Generated", pair[1]),) if run.is_evaluation_only else (("Before", pair[0]), ("After", pair[1])))
        for row, pair in paired_predictions(before, after, ids=ids)
    )


def _run_facts(run: RunFiles) -> tuple[tuple[str, str], ...]:
    if run.log is None:
        return ()
    end = run.log.end or {}
    facts: list[tuple[str, Any, str]] = [
        ("started", run.log.start.get("time"), "{}"),
        ("ended because", end.get("reason"), "{}"),
        ("steps", end.get("step") or (run.log.steps[-1].step if run.log.steps else None), "{:,}"),
        ("epochs", end.get("epoch"), "{:g}"),
        ("kept", end.get("kept_epoch"), "state after epoch {:g}"),
        ("tokens seen", end.get("num_tokens"), "{:,}"),
        ("peak memory", _scaled(end.get("peak_memory_bytes"), 2**30), "{:.2f} GiB"),
    ]
    shown = [(name, _formatted(form, value)) for name, value, form in facts if value is not None]
    duration = end.get("duration_s")
    if isinstance(duration, int | float) and math.isfinite(duration):
        shown.append(("training time", _duration(duration)))
    return tuple(shown)


def _scaled(value: object, unit: float) -> float | None:
    return value / unit if isinstance(value, int | float) else None


def _formatted(form: str, value: object) -> str:
    return form.format(value) if isinstance(value, int | float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(hours or minutes) + [f"{rest} s"]
    return " ".join(parts) if seconds >= 60 else f"{seconds:.1f} s"
