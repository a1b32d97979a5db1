"""An audit in tables: for the terminal, and as the section of a report that an auditor reads first."""

from rich.console import Console

from letheon.report.tables import Cell, Estimate, Table, to_rich
from letheon.report.text import to_rich_text
from letheon.scores.audits import CONTROLS, AuditedAttack, AuditResults, Effect


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
    names = [name for name in CONTROLS if name in results.known]
    columns = ("", "at", *(CONTROLS[name] for name in names), "recovery")
    rows: list[tuple[Cell, ...]] = [
        ("without an attack", None, *(results.known.get(name) for name in names), _effect(results.remaining))
    ]
    for attack in results.attacks:
        rows += _rows(attack, names)
    notes = (
        "Knowledge of the asked rows, 0 to 1: exact match for questions, ROUGE-L recall for texts; of membership the "
        "AUC and its shift, where both sides of the control's count.",
        "Recovery is the share of what was forgotten that comes back, less that of the control "
        f"({CONTROLS[results.compared_with]}); without an attack, the share that is still given. Intervals hold "
        f"together with {results.thresholds['level']:.0%}.",
    )
    return Table("Audit", columns, tuple(rows), notes=notes)


def _rows(attack: AuditedAttack, names: list[str]) -> list[tuple[Cell, ...]]:
    title = attack.title + ("" if attack.works is not False else " (too weak to tell)")
    title += "" if attack.counts else " (not in the verdict)"
    if attack.separations:
        return [
            (f"{title}, {one.score}", None, *(one.auc.get(name) for name in names), _effect(one.shift))
            for one in attack.separations
        ]
    best = max(attack.points, key=lambda p: p.values.get("after", 0.0) if p.recovery is None else p.recovery.value)
    return [(title, best.label, *(best.values.get(name) for name in names), _effect(best.recovery))]


def _effect(effect: Effect | None) -> Estimate | None:
    return None if effect is None else Estimate(effect.value, effect.low, effect.high)
