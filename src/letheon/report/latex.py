"""Tables as LaTeX, for the booktabs package."""

import re

from letheon.report.tables import Cell, Estimate, Spread, Table, cell_text, is_number_column
from letheon.report.text import visible_line

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "—": "---",
    "–": "--",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
}


def to_latex(table: Table) -> str:
    """Return the table as a LaTeX `table` with its title as caption and its notes below; needs booktabs.

    Whatever the table's texts hold is shown as it is: no command is read from them.
    """
    alignment = "".join("r" if is_number_column(table, index) else "l" for index in range(len(table.columns)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{to_latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _row([to_latex_text(column) for column in table.columns]),
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if index in table.sections:
            lines.append(r"\midrule")
        lines.append(_row([_cell(cell) for cell in row]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {to_latex_text(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_latex_text(text: str) -> str:
    """Return `text` as LaTeX in which nothing is a command."""
    return re.sub("|".join(map(re.escape, _ESCAPES)), lambda found: _ESCAPES[found.group()], visible_line(text))


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    match cell:
        case Spread() | Estimate():
            number, _, rest = to_latex_text(cell_text(cell)).partition(" (")
            interval = rf" {{\scriptsize ({rest}}}" if rest else ""
            is_best = isinstance(cell, Spread) and cell.is_best
            return (rf"\textbf{{{number}}}" if is_best else number) + interval
        case _:
            return to_latex_text(cell_text(cell))
