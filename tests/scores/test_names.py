"""What a score is called stands in its suite: nothing else in the package, and no template, names one."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

import letheon
from letheon.evaluation.registry import suites
from letheon.scores.score import FORGOTTEN, RETAINED, Role, variant_name

SOURCE = Path(letheon.__file__).parent
SUITES = SOURCE / "evaluation" / "suites"
KIND_OF_LUME = {"regurgitation"}
"""Part of the names of scores that are not known before rows are; "knowledge", the other kind, is a word of English."""
OF_ALL = {FORGOTTEN, RETAINED, *get_args(Role)}
"""Names that scores of any suite may have, or that say something else besides."""


def names_of(suite: str) -> set[str]:
    scores = suites()[suite].scores
    own = {text for score in scores for text in (score.name, score.label)}
    return {text for text in own if text.lower().split(" (")[0] not in OF_ALL} | KIND_OF_LUME


def texts_of(path: Path) -> Iterator[str]:
    """The text constants of a module, docstrings aside; all of a template."""
    if path.suffix != ".py":
        yield path.read_text(encoding="utf-8")
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


@cache
def texts_outside_suites() -> list[tuple[str, str]]:
    """The file name and text of each constant in the package, outside the suites."""
    files = [path for path in SOURCE.rglob("*") if path.suffix in {".py", ".j2"} and SUITES not in path.parents]
    assert len(files) > 100
    return [(path.name, text) for path in files for text in texts_of(path)]


def places_of(names: set[str]) -> list[str]:
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(name)}(?![\w.])" for name in sorted(names)))
    return [f"{file}: {found.group()}" for file, text in texts_outside_suites() for found in pattern.finditer(text)]


@pytest.mark.parametrize("suite", suites())
def test_scores_are_named_by_their_suite_alone(suite: str) -> None:
    assert places_of(names_of(suite)) == []


def test_a_name_elsewhere_would_be_found() -> None:
    assert {"mia.auc", "MMLU accuracy", "Final score", "regurgitation"} <= names_of("lume")
    assert places_of({variant_name("forgotten", ())})
