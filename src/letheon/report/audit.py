"""An audit in tables: for the terminal, and as the section of a report that an auditor reads first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from letheon.report.evidence import Facts
from letheon.report.files import RunFiles
from letheon.report.tables import Cell, Estimate, Table, to_rich
from letheon.report.text import to_rich_text
from letheon.scores.audits import CONTROLS, AuditedAttack, AuditResults, Effect
from letheon.storage.json_lines import read_json_lines
from letheon.storage.run_folder import AUDITS_FOLDER, EXAMPLES_FILE

MASK = "▇"
_FOR_ROUNDING = "hiding-until-rounded"
"""The control that one attack alone is run on, so that the figure shows it and no column of the table."""
_SHOWN = 2
"""Characters of a word that a masked text keeps."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row that came back; its texts are masked unless the audit was told to show secrets."""

    attack: str
    strength: str
    id: str
    prompt: str
    answer: str
    said: str


@dataclass(frozen=True, slots=True)
class AuditSection:
    """What a report says of an audit."""

    word: str
    sentence: str
    is_of_run: bool
    """Whether the audited model is the one that the run has now."""
    table: Table
    membership: Table | None
    """What attacks that tell seen rows from unseen ones find in the unlearned model."""
    facts: Facts
    thresholds: Facts
    warnings: tuple[str, ...]
    left_out: Facts
    noted: Facts
    """What attacks say beside their table: which prompt won, shares of what was known, heights of curves."""
    sources: Facts
    examples: tuple[Example, ...]
    is_masked: bool


def audit_section(run: RunFiles, *, folder: Path | None = None) -> AuditSection | None:
    """Return the section on the audit of a run, or on that in `folder`; None where there was none."""
    results = run.audit
    if results is None:
        return None
    is_masked = not results.settings.get("show_secrets")
    return AuditSection(
        results.verdict,
        sentence(results),
        _is_of_run(run, results),
        attack_table(results),
        membership_table(results),
        _facts(results),
        tuple((name.replace("_", " "), f"{value:g}") for name, value in results.thresholds.items()),
        results.warnings,
        (
            *((CONTROLS.get(name, name), f"no such model: {reason}") for name, reason in results.missing.items()),
            *results.left_out.items(),
        ),
        tuple((attack.title, line) for attack in results.attacks for line in _noted(attack)),
        tuple((attack.title, attack.source) for attack in results.attacks),
        _examples((folder or run.folder / AUDITS_FOLDER) / EXAMPLES_FILE, is_masked=is_masked),
        is_masked,
    )


def print_audit(results: AuditResults, console: Console) -> None:
    """Print the table of attacks, what was not tried, and the verdict."""
    console.print(to_rich(attack_table(results)))
    for line in (*results.warnings, *(f"not tried: {name}: {reason}" for name, reason in results.left_out.items())):
        console.print(to_rich_text(line), soft_wrap=True)
    console.print(to_rich_text(sentence(results)), soft_wrap=True)


def sentence(results: AuditResults) -> str:
    """Return the verdict with its reason."""
    return f"{results.verdict}: {results.reason}."


def attack_table(results: AuditResults) -> Table:
    """Return the table attack x control, at the strength at which most comes back of the unlearned model."""
    names = [name for name in CONTROLS if name in results.known and name != _FOR_ROUNDING]
    columns = ("Attack", "at", *(CONTROLS[name] for name in names), "recovery")
    plain = ("without an attack", None, *(results.known.get(name) for name in names), _effect(results.remaining))
    rows = [plain, *(row for attack in results.attacks for row in _rows(attack, names))]
    level, control = results.thresholds.get("level", 0.0), CONTROLS.get(results.compared_with, results.compared_with)
    notes = (
        "Knowledge of the asked rows, 0 to 1: exact match for questions, ROUGE-L recall for texts; of membership the "
        "AUC, and as recovery its shift, where both sides of the control's count.",
        f"Recovery is the share of what was forgotten that comes back, less that of the control ({control}); without "
        f"an attack, the share that is still given. All intervals together hold with {level:.0%}.",
    )
    return Table("Audit", columns, tuple(rows), notes=notes)


def membership_table(results: AuditResults) -> Table | None:
    """Return AUC and true positives of each score of the unlearned model; None where no such attack was run."""
    rows = tuple(
        (
            f"{attack.title}, {one.score}",
            *map(_effect, (one.interval, one.shift, *one.true_positives)),
        )
        for attack in results.attacks
        for one in attack.separations
    )
    columns = ("Score", "AUC", "shift", "found as cheap", "found as dear")
    notes = (
        "The shift is the AUC less the control's, or less 0.5. Found: share of the forget rows that are told at 5% "
        "false positives, by taking cheap rows for seen, and by taking dear ones.",
    )
    return Table("Told from unseen rows", columns, rows, notes=notes) if rows else None


def masked(text: str) -> str:
    """Return a text of which each word keeps its first characters, so that a reader sees that it was there."""
    return " ".join(word[:_SHOWN] + MASK * max(0, len(word) - _SHOWN) for word in text.split())


def _rows(attack: AuditedAttack, names: list[str]) -> list[tuple[Cell, ...]]:
    title = attack.title + ("" if attack.works is not False else " (too weak to tell)")
    title += "" if attack.counts else " (not in the verdict)"
    if attack.separations:
        return [
            (f"{title}, {one.score}", None, *(one.auc.get(name) for name in names), _effect(one.shift))
            for one in attack.separations
        ]
    if not attack.points:
        return [(title, None, *(None for _ in names), None)]
    best = max(attack.points, key=lambda p: p.values.get("after", 0.0) if p.recovery is None else p.recovery.value)
    return [(title, best.label, *(best.values.get(name) for name in names), _effect(best.recovery))]


def _effect(effect: Effect | None) -> Estimate | None:
    return None if effect is None else Estimate(effect.value, effect.low, effect.high)


def _facts(results: AuditResults) -> Facts:
    counts = results.num_rows
    return (
        *((CONTROLS.get(name, name), what) for name, what in results.controls.items()),
        ("asked", f"{counts.get('asked')} of {counts.get('forget')} forget rows{_of_documents(counts)}"),
        ("placebo", f"{'rows of --holdout' if 'holdout' in counts else 'made-up rows'} that no model saw"),
        ("form", str(results.form.get("template"))),
        ("rows that came back without an attack", str(results.num_leaked)),
        ("time", f"{results.duration_s:.0f} s"),
    )


def _noted(attack: AuditedAttack) -> list[str]:
    found = list(attack.notes)
    shares = [f"{point.label} {point.of_before:.2f}" for point in attack.points if point.of_before is not None]
    if shares:
        found.append(f"share of what the model before gives, at most 1: {', '.join(shares)}")
    height = attack.area_recovery
    if height is not None and len(attack.points) > 1:
        spread = f"{height.low:.2f} to {height.high:.2f}"
        found.append(f"mean height of the recovery over the logarithm of strength: {height.value:.2f} ({spread})")
    return found


def _of_documents(counts: Mapping[str, int]) -> str:
    """How many documents the asked rows are of, where rows share one."""
    num = counts.get("documents", counts.get("asked"))
    return "" if num == counts.get("asked") else f", of {num} documents"


def _is_of_run(run: RunFiles, results: AuditResults) -> bool:
    read, result = results.provenance.get("read"), run.provenance.get("result")
    audited = read.get("model_sha256") if isinstance(read, dict) else None
    return audited is None or not isinstance(result, dict) or audited == result.get("model_sha256")


def _examples(path: Path, *, is_masked: bool) -> tuple[Example, ...]:
    if not path.is_file():
        return ()
    show = masked if is_masked else str
    return tuple(
        Example(
            str(record.get("attack") or "without an attack"),
            str(record.get("strength", "")),
            str(record.get("id", "")),
            show(str(record.get("prompt", ""))),
            show(str(record.get("answer", ""))),
            show(str(record.get("said", ""))),
        )
        for _, record in read_json_lines(path, expected="examples of an audit").records
    )
