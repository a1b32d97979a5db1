"""report.html of an audit without a run: the section that a run's report begins with, as a page of its own."""

import json
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from letheon.report.audit import AuditSection, audit_section
from letheon.report.evidence import Facts
from letheon.report.figures import figure_svgs
from letheon.report.files import RunFiles, flat_items
from letheon.report.html import render_page
from letheon.scores.audits import AUDIT_SCHEMAS, read_audit
from letheon.storage.run_folder import AUDIT_RESULTS_FILE, AUDITS_FOLDER, REPORT_FILE, SETTINGS_FILE, write_entry


@dataclass(frozen=True, slots=True)
class AuditPage:
    """What the template shows."""

    title: str
    audit: AuditSection
    curves: Markup | None
    settings: Facts
    provenance: Facts


def audit_without_run(folder: Path) -> Path | None:
    """Return the folder of the audit that `folder` is, or has in audit/ although it is no run; None for others."""
    if (folder / AUDIT_RESULTS_FILE).is_file() and _is_audit(folder / AUDIT_RESULTS_FILE):
        return folder
    inner = folder / AUDITS_FOLDER
    is_run = (folder / SETTINGS_FILE).is_file() or (folder / AUDIT_RESULTS_FILE).is_file()
    return inner if not is_run and (inner / AUDIT_RESULTS_FILE).is_file() else None


def write_audit_page(folder: Path) -> Path:
    """Write report.html into the folder of an audit, its owner's alone since it shows rows; return its path.

    Raises:
        EvaluationError: the results of the audit cannot be read.
        OutputError: the page cannot be written.
    """
    write_entry(folder, REPORT_FILE, render(folder))
    return folder / REPORT_FILE


def render(folder: Path) -> str:
    """Return the page's HTML; the same files give the same text."""
    results = read_audit(folder / AUDIT_RESULTS_FILE)
    files = RunFiles(folder.parent, audit=results)
    section = audit_section(files, folder=folder)
    assert section is not None, "the results are there"
    curves = figure_svgs(files).get("audit")
    model = results.settings.get("model")
    page = AuditPage(
        title=f"Audit report: {model}" if model else "Audit report",
        audit=section,
        curves=None if curves is None else Markup(curves),  # noqa: S704 - drawn here, its texts escaped
        settings=tuple((name, _plain(value)) for name, value in results.settings.items()),
        provenance=tuple(flat_items(dict(results.provenance))),
    )
    return render_page("audit_page.html.j2", page, title=page.title)


def _is_audit(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and str(found.get("schema")).startswith(AUDIT_SCHEMAS)


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
