"""How pages are made: templates with everything escaped, one style sheet bound by its hash, no scripts, no requests."""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from letheon.report.tables import Spread, cell_text, is_number_column
from letheon.report.text import to_markup, visible_line


def render_page(template: str, page: object, *, title: str) -> str:
    """Return the HTML that a template, which extends base.html.j2, makes of `page`; the same page gives the same text.

    `title` heads the browser's tab.
    """
    loader = PackageLoader("letheon.report", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["cell"] = cell_text
    environment.tests["numbers"] = is_number_column
    environment.tests["best"] = lambda cell: isinstance(cell, Spread) and cell.is_best
    css = loader.get_source(environment, "report.css")[0]
    css_hash = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template(template).render(
        page=page,
        tab_title=escape(visible_line(title)),
        css=Markup(css),  # noqa: S704 - our own file
        css_hash=css_hash,
    )


def _shown(value: object) -> object:
    """Escape whatever the template prints, so that no text can reach the page in another way."""
    return to_markup(value) if isinstance(value, str) and not isinstance(value, Markup) else value
