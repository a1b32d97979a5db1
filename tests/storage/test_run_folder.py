"""The table of what Letheon writes: no name is spelled elsewhere, and files, purge and SECURITY.md are as it says."""

import ast
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.api import evaluate, study, unlearn, write_report
from letheon.data.rows import Row
from letheon.purging.purge import purge
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.storage import run_folder
from letheon.storage.files import TEMPORARY_PREFIX
from letheon.storage.run_folder import PLACES, Entry
from letheon.studies.spec import StudySettings
from running import short_run

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "letheon"
ENTRIES = {name: value for name, value in vars(run_folder).items() if isinstance(value, Entry)}
HELP = ("description", "help")
ANYWHERE = PLACES["any of these"]


def silent(_: str) -> None:
    pass


def names_of_files() -> set[str]:
    named = {Path(entry.name).name for entry in ENTRIES.values() if not entry.is_folder and "*" not in entry.name}
    return named - {run_folder.LOCK_FILE.name}  # a suffix too


def spelled_in(path: Path) -> Iterator[str]:
    """Yield the names that a module spells outside docstrings and the help of settings and options."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    prose: list[ast.AST] = [node for node in nodes if isinstance(node, ast.keyword) and node.arg in HELP]
    prose += [node.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    skipped = {id(part) for one in prose for part in ast.walk(one)}
    pattern = "|".join(re.escape(name) for name in sorted(names_of_files()))
    folders = {entry.name for entry in ENTRIES.values() if entry.is_folder}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            found = re.findall(rf"(?<![\w.-])(?:{pattern})(?!\.?\w)", node.value)
            yield from (f"{path.name}:{node.lineno}: {name}" for name in found)
        joined = node.right if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) else None
        ours = joined is not None and not ast.unparse(node).endswith("'recipes' / 'studies'")
        if ours and isinstance(joined, ast.Constant) and joined.value in folders:
            yield f"{path.name}:{joined.lineno}: {joined.value}/"


def test_no_name_of_a_file_is_spelled_outside_the_table() -> None:
    found = [line for path in SOURCE.rglob("*.py") if path.name != "run_folder.py" for line in spelled_in(path)]
    assert found == []


def test_the_search_for_names_finds_them(tmp_path: Path) -> None:
    code = '"""log.jsonl"""\nfirst = out / "log.jsonl"\nsecond = f"{run}/form.json"\nthird = out / "checkpoints"\n'
    (tmp_path / "module.py").write_text(f'{code}fourth = "report.html.j2"\nfifth = Field(help="see log.jsonl")\n')
    assert sorted(spelled_in(tmp_path / "module.py")) == [
        "module.py:2: log.jsonl", "module.py:3: form.json", "module.py:4: checkpoints/",
    ]  # fmt: skip


def test_each_entry_has_a_place_and_its_writer_names_it() -> None:
    assert {entry for entries in PLACES.values() for entry in entries} == set(ENTRIES.values())
    for name, entry in ENTRIES.items():
        code = (SOURCE / f"{entry.writer.replace('.', '/')}.py").read_text(encoding="utf-8")
        folder = next((n for n, e in ENTRIES.items() if e.is_folder and entry.name.startswith(f"{e.name}/")), name)
        assert re.search(rf"\b({name}|{folder})\b", code) or "*" in entry.name, (name, entry.writer)


def test_what_is_purged_holds_rows_and_what_holds_rows_is_not_kept() -> None:
    follow = (run_folder.STATE_FILE, run_folder.MANIFEST_FILE, run_folder.DROPPED_FOLDER)
    assert {e for e in ENTRIES.values() if e.rows} == {e for e in ENTRIES.values() if e.fate != "kept"}.difference(
        follow
    )


def test_security_has_the_table() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert security_table() in text, f"SECURITY.md should contain\n{security_table()}"


FATES = {
    "kept": "stays",
    "removed": "removed",
    "rewritten": "written again without them",
    "reworded": "stays, they are replaced",
}


def security_table() -> str:
    """The table of SECURITY.md; entries of one place with the same facts share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for place, entries in PLACES.items():
        for entry in entries:
            facts = (place, entry.rows or "nothing", permissions(entry), FATES[entry.fate])
            if entry is run_folder.LEFTOVERS or not entry.name.startswith(TEMPORARY_PREFIX):
                lines.setdefault(facts, []).append(f"`{entry.name}{'/' if entry.is_folder else ''}`")
    body = [f"| {', '.join(names)} | {facts[0]} | {' | '.join(facts[1:])} |" for facts, names in lines.items()]
    head = ["| file | in | what of the rows | permissions | `letheon purge` |", "|---|---|---|---|---|"]
    return "\n".join([*head, *body])


def permissions(entry: Entry) -> str:
    if entry is run_folder.LEFTOVERS:
        return "those of that file"
    if entry.readers == "all":
        return "0755, files 0644"
    return f"{entry.mode:04o}" if entry.is_private else "by your umask"


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {**short_run(tmp_path, rows, model, tokenizer), "epochs": 2, "checkpoint_epochs": 1}


def test_a_run_writes_what_the_table_says_for_whom_it_says_and_purge_does_too(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})
    before = os.umask(0)
    try:
        folder = unlearn(UnlearnSettings.of({**given, "trackers": "tensorboard"})).folder
        scored = {name: given[name] for name in ("model", "forget", "retain")} | {"max_new_tokens": 2}
        evaluate(EvaluateSettings.of({**scored, "out": folder / "evaluation" / "before"}))
        write_report(folder)
    finally:
        os.umask(before)
    found = checked(folder, (*run_folder.RUN, *ANYWHERE))
    never = {
        "POPULATION_FILE", "PURGE_FILE", "LOCK_FILE", "OWNER_FILE", "LEFTOVERS", "STATE_FOLDER", "DROPPED_FOLDER",
        "STAGED_FOLDER", "AUDITS_FOLDER",
    }  # fmt: skip
    assert {entry for entry in found.values() if entry in run_folder.RUN} == {
        entry for name, entry in ENTRIES.items() if entry in run_folder.RUN and name not in never
    }
    store = next((Path(os.environ["LETHEON_CACHE"]) / run_folder.STORES_FOLDER).iterdir())
    assert stat.S_IMODE(store.stat().st_mode) == run_folder.STORE_FILES.mode
    purge(folder, note=silent)
    after = {path for path in found if path.exists()}
    assert after == {path for path, entry in found.items() if entry.fate != "removed"}
    assert not store.exists()


@pytest.mark.slow
def test_a_study_writes_what_the_table_says_for_whom_it_says_and_purge_does_too(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})
    out = tmp_path / "study"
    values = {"grid": {"learning_rate": [1e-2, 1e30]}, "evaluate": {"max_new_tokens": 2}}
    settings = StudySettings.of({"base": {name: value for name, value in given.items() if name != "out"}, **values})
    before = os.umask(0)
    try:
        assert {run.state for run in study(settings, out).record.runs} == {"finished", "diverged"}
    finally:
        os.umask(before)
    found = checked(out, (*run_folder.STUDY, *ANYWHERE))
    assert {entry for entry in found.values() if entry in run_folder.STUDY} == {
        entry for entry in run_folder.STUDY if entry is not run_folder.FIGURES_FOLDER
    }
    kept = {path: path.read_bytes() for path, one in found.items() if one.fate == "kept" and path.is_file()}
    changed = {
        path: path.read_bytes() for path, one in found.items() if one.fate == "reworded" and "study" in path.name
    }
    purge(out, note=silent)
    after = {path for path in found if path.exists()}
    assert after == {path for path, entry in found.items() if entry.fate != "removed"}
    assert {path: path.read_bytes() for path in kept if path.name != "README.md"} == {
        path: content for path, content in kept.items() if path.name != "README.md"
    }
    assert all(path.read_bytes() != content for path, content in changed.items())


def checked(folder: Path, entries: tuple[Entry, ...]) -> dict[Path, Entry]:
    """Check that all below `folder` is in the table and open to whom that says; return it with its entries."""
    found: dict[Path, Entry] = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        top = next((one for one in entries if one.name == inside.parts[0]), None)
        exact = next(
            (one for one in entries if inside.match(one.name) and len(inside.parts) == len(Path(one.name).parts)), None
        )
        assert top or exact, f"{inside} is not in the table"
        if exact is not None:
            found[path] = exact
            mode = 0o755 if exact.readers == "all" else exact.mode
            assert stat.S_IMODE(path.stat().st_mode) == mode, path
    inner = {"evaluation": run_folder.EVALUATION, "original": run_folder.EVALUATION, "runs": run_folder.RUN}
    for name, own in inner.items():
        for path in (folder / name).glob("*"):
            found |= checked(path, (*own, *ANYWHERE))
    for path in (folder / run_folder.CHECKPOINTS_FOLDER).glob("*"):
        found |= checked(path, run_folder.CHECKPOINT)
    return found
