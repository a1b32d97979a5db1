"""docs/layout.md tells today's tree: every module is named there or lies in a folder that is, and nothing else is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "letheon"
PAGE = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
TREE = PAGE.split("```text\n")[1].split("```")[0]


def described() -> set[str]:
    """Files and folders that the tree names, relative to src/letheon; those of a line lie in the folder above it."""
    found: set[str] = set()
    above: list[tuple[int, str]] = []
    for line in TREE.splitlines():
        indent = len(line) - len(line.lstrip())
        above = [(depth, folder) for depth, folder in above if depth < indent]
        folder = above[-1][1] if above else ""
        found |= {folder + name for name in re.findall(r"\w+\.py\b", line)}
        if heading := re.match(r"\s*(\S+/)  ", line):
            found.add(folder + heading[1])
            above.append((indent, folder + heading[1]))
        elif indent == 0 and line.endswith("/"):
            above = [(indent, "")]
    return found


def test_every_module_is_named_or_lies_in_a_folder_that_is_described() -> None:
    names = described()
    modules = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")]
    assert len(modules) > 100
    lost = [str(path) for path in modules if str(path) not in names and f"{path.parent}/" not in names]
    assert lost == []


def test_what_the_tree_names_is_there() -> None:
    outside = {"bench/", "docs/", "tests/"}
    gone = [name for name in described() - outside if not (SOURCE / name).exists()]
    assert gone == []
    assert all((ROOT / name).is_dir() for name in outside)


def test_the_way_of_a_row_names_files_that_are_there() -> None:
    lines = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    way = [name for line in lines for name in re.findall(r"\w+/\w+\.py", line)]
    assert 10 <= len(lines) <= 14
    assert len(way) == len(lines) + 1, "one file a line, and two of losses, of which a row passes one"
    assert [name for name in way if not (SOURCE / name).exists()] == []
