"""Folders that results cannot go to, and results that cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path

from bad_place import Bad, Place, row_line

OBJECT = "rank: !!python/object/apply:os.system ['echo taken']\n"
PREDICTION = {
    "id": "a",
    "split": "forget",
    "task": "Task1",
    "kind": "question",
    "prompt": "Who?",
    "answer": "Mira",
    "generation": "I",
}
RESULT = {"schema": "letheon.results/1", "suite": "lume", "model": "m", "mmlu": {"accuracy": "high"}}
_FOLDER = "a folder to write to"
_SUFFIXES = ".jsonl, .json, .parquet, .csv, .tsv"
_SAVED = "the data set library's save_to_disk; name the file inside it"
_GOT_AS_OUT = "expected the folder that a run, an evaluation or a study got as --out"

_Make = Callable[[Place], list[object]]
_MakeFor = Callable[[Place, Path], list[object]]

_WRITERS: list[tuple[str, _MakeFor, str, str]] = [
    ("benchmark", lambda p, to: ["data", "synthetic", "--to", to, "--size", "tiny"], _FOLDER, "folder"),
    ("LUME", lambda p, to: ["data", "lume", "--to", to], _FOLDER, "folder"),
    ("demo", lambda p, to: ["demo", "--out", to, "--size", "tiny"], _FOLDER, "--out"),
    ("new model", lambda p, to: p.memorize("--out", to), _FOLDER, "--out"),
    ("evaluation", lambda p, to: p.evaluate("--out", to), _FOLDER, "--out"),
    ("rescoring", lambda p, to: [*p.rescore(row_line(**PREDICTION)), "--out", to], _FOLDER, "--out"),
    ("study", lambda p, to: ["study", p.study(), "--out", to], "a folder for the study", "--out"),
    ("cache", lambda p, to: p.unlearn("--cache-dir", to), "a folder for reference stores", "--cache-dir"),
]
_READERS_OF_ROWS: list[tuple[str, _Make]] = [
    ("a folder as a holdout", lambda p: p.unlearn("--holdout", p.at)),
    ("a folder as alternatives", lambda p: p.unlearn("--method", "alt-po", "--alternatives", p.at)),
    ("a folder as text", lambda p: p.memorize("--text", p.at)),
    ("a folder as members", lambda p: p.evaluate("--members", p.at, "--nonmembers", p.at / "forget.jsonl")),
]
_READERS_OF_SETTINGS: list[tuple[str, _Make]] = [
    ("a folder as settings", lambda p: p.unlearn("--config", p.at / "target")),
    ("a folder as a study", lambda p: ["study", p.at / "target", "--out", p.at / "run"]),
]
_READERS_OF_FOLDERS: list[tuple[str, _MakeFor]] = [
    ("a report", lambda p, of: ["report", of]),
    ("a purge", lambda p, of: ["purge", of]),
    ("a study's report", lambda p, of: ["study", "--report-only", "--out", of]),
]


def _writing_to(make: _MakeFor, path: str) -> _Make:
    return lambda p: make(p, p.at / path)


def _reading_link(make: _MakeFor) -> _Make:
    return lambda p: make(p, p.link("link", "gone"))


OUTPUTS = [
    Bad(
        "out is a file",
        lambda p: p.unlearn(out=p.at / "forget.jsonl"),
        "{at}/forget.jsonl: expected a folder for the run, found a file; choose another --out",
    ),
    Bad(
        "out below a file",
        lambda p: p.unlearn(out=p.at / "forget.jsonl" / "run"),
        ("{at}/forget.jsonl/run: expected a folder for the run, but {at}/forget.jsonl is a file; choose another --out"),
    ),
    Bad(
        "out where no one can write",
        lambda p: p.unlearn(out="/proc/run"),
        "/proc/run: the folder cannot be made (No such file or directory); choose another --out",
    ),
    Bad(
        "out with a name too long",
        lambda p: p.unlearn(out="x" * 300),
        "x" * 300 + ": " + "File name too long; check that path, its permissions and the disk",
    ),
    Bad(
        "no out",
        lambda p: p.unlearn(out=""),
        "out: expected a value, got nothing; leave the setting out or give it one",
    ),
    Bad(
        "out is a link to nothing",
        lambda p: p.unlearn(out=p.link("link", "gone")),
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "scores below a link to nothing",
        lambda p: p.evaluate("--out", p.link("link", "gone") / "scores"),
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "a new model into a link to nothing",
        lambda p: p.memorize("--out", p.link("link", "gone")),
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "a benchmark into a link to nothing",
        lambda p: ["data", "synthetic", "--to", p.link("link", "gone"), "--size", "tiny"],
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "LUME into a link to nothing",
        lambda p: ["data", "lume", "--to", p.link("link", "gone")],
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "a demo into a link to nothing",
        lambda p: ["demo", "--out", p.link("link", "gone")],
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "a study into a link to nothing",
        lambda p: ["study", p.study(), "--out", p.link("link", "gone")],
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "a cache in a link to nothing",
        lambda p: p.unlearn("--cache-dir", p.link("link", "gone")),
        "{at}/link: is a link to gone, which is not there; make that folder, or give another one",
    ),
    Bad(
        "nothing to resume",
        lambda p: p.unlearn("--resume", out=p.at / "rnu"),
        (
            "{at}/rnu: no such folder, so there is no run to resume; give the --out of that run, or leave out "
            "--resume to start a new one"
        ),
    ),
    Bad(
        "scores over those of another model",
        lambda p: (p.scored(model="other", forget=p.at / "forget.jsonl"), p.evaluate("--out", p.at / "old"))[1],
        (
            "{at}/old: already holds an evaluation of model other, not {at}/target; choose another --out, or remove "
            "{at}/old/results.json"
        ),
    ),
    Bad(
        "scores over those of other rows",
        lambda p: (p.scored(model=p.at / "target", forget="f.csv"), p.evaluate("--out", p.at / "old"))[1],
        (
            "{at}/old: already holds an evaluation of forget f.csv, not {at}/forget.jsonl; choose another --out, or "
            "remove {at}/old/results.json"
        ),
    ),
    Bad(
        "scores over what is none",
        lambda p: (p.report("results.json", "{}"), p.evaluate("--out", p.at / "old"))[1],
        (
            "{at}/old: already holds scores, which cannot be read ({at}/old/results.json: expected a results file with "
            "schema 'letheon.results/1'; is it a results.json of evaluate?); choose another --out, or remove "
            "{at}/old/results.json"
        ),
    ),
    Bad(
        "scores again over those of another model",
        lambda p: [*p.rescore(row_line(**PREDICTION)), "--out", p.scored(model="other", forget="f.csv")],
        (
            "{at}/old: already holds an evaluation of model other, not unknown and forget f.csv, not unknown and "
            "retain {at}/retain.jsonl, not unknown; choose another --out, or remove {at}/old/results.json"
        ),
    ),
    Bad(
        "out is where the rows are",
        lambda p: p.unlearn(out=p.at),
        "{at}: already holds files; choose another --out, or use --resume to continue the run there",
    ),
    Bad(
        "out inside the model",
        lambda p: p.unlearn(out=p.at / "target" / "run"),
        "{at}/target/run: lies inside the checkpoint {at}/target; choose a folder outside it",
    ),
    Bad(
        "scores inside the model",
        lambda p: p.evaluate("--out", p.at / "target" / "scores"),
        "{at}/target/scores: lies inside the checkpoint {at}/target; choose a folder outside it",
    ),
    Bad(
        "a new model over other files",
        lambda p: p.memorize("--out", p.at),
        "{at}: already holds files that a checkpoint would replace; choose another --out",
    ),
    Bad(
        "a benchmark over other files",
        lambda p: ["data", "synthetic", "--to", p.at, "--size", "tiny"],
        "{at}: already holds files, forget.jsonl among them; choose another folder",
    ),
    Bad(
        "LUME over other files",
        lambda p: ["data", "lume", "--to", p.at],
        "{at}/forget.jsonl: already exists; choose another folder, or pass overwrite=True in Python",
    ),
    Bad(
        "a demo over other files",
        lambda p: ["demo", "--out", p.at],
        "{at}: already holds files; choose another --out or remove it",
    ),
    *(
        Bad(
            f"{name} {where}",
            _writing_to(make, path),
            f"{{at}}/{path}: expected {what}, {found}; choose another {option}",
        )
        for name, make, what, option in _WRITERS
        for where, path, found in (
            ("into a file", "forget.jsonl", "found a file"),
            ("below a file", "forget.jsonl/new", "but {at}/forget.jsonl is a file"),
        )
    ),
    *(
        Bad(
            f"{name} where no one can write",
            _writing_to(make, "/proc/new"),
            f"/proc/new: the folder cannot be made (No such file or directory); choose another {option}",
        )
        for name, make, _, option in _WRITERS
        if name != "cache"  # made only when there is something to put into it
    ),
    *(
        Bad(name, make, f"{{at}}: is a folder; expected a file ({_SUFFIXES}) or a folder made by {_SAVED}")
        for name, make in _READERS_OF_ROWS
    ),
    *(
        Bad(name, make, "{at}/target: the settings file cannot be read (Is a directory); check the path")
        for name, make in _READERS_OF_SETTINGS
    ),
    Bad(
        "a folder as predictions",
        lambda p: ["evaluate", "--predictions", p.at, "--out", p.at / "run"],
        "{at}: expected a predictions.jsonl of evaluate, but it cannot be read (Is a directory); check the path",
    ),
    *(
        Bad(f"{name} of a {where}", _writing_to(make, path), f"{{at}}/{path}: {what}; {_GOT_AS_OUT}")
        for where, path, what in (
            ("file", "forget.jsonl", "is a file"),
            ("folder that is not there", "targt", "no such folder (did you mean 'target'?)"),
        )
        for name, make in _READERS_OF_FOLDERS
    ),
    *(
        Bad(
            f"{name} of a link to nothing",
            _reading_link(make),
            f"{{at}}/link: is a link to gone, which is not there; {_GOT_AS_OUT}",
        )
        for name, make in _READERS_OF_FOLDERS
    ),
    Bad(
        "a cache that is a file",
        lambda p: p.unlearn("--cache-dir", p.at / "forget.jsonl"),
        "{at}/forget.jsonl: expected a folder for reference stores, found a file; choose another --cache-dir",
    ),
]

RESULTS = [
    Bad(
        "no predictions",
        lambda p: ["evaluate", "--predictions", p.at / "p.jsonl", "--out", p.at / "run"],
        (
            "{at}/p.jsonl: expected a predictions.jsonl of evaluate, but it cannot be read (No such file or "
            "directory); check the path"
        ),
    ),
    Bad(
        "empty predictions",
        lambda p: p.rescore(""),
        "{at}/p/predictions.jsonl: expected one prediction per line, but the file is empty; run evaluate again",
    ),
    Bad(
        "predictions that are none",
        lambda p: p.rescore("[1]\n"),
        "{at}/p/predictions.jsonl:1: expected a JSON object, got list",
    ),
    Bad(
        "predictions nested deep",
        lambda p: p.rescore("[" * 100_000),
        (
            "{at}/p/predictions.jsonl:1: expected a JSON object, cannot read it (maximum recursion depth "
            "exceeded while decoding a JSON array from a unicode string); restore the file, or remove that line"
        ),
    ),
    Bad(
        "predictions without fields",
        lambda p: p.rescore("{}\n"),
        (
            "{at}/p/predictions.jsonl:1: expected text in the field 'id', got None; a prediction has the fields "
            "id, split, task, kind, prompt, answer, generation"
        ),
    ),
    Bad(
        "predictions of another set",
        lambda p: p.rescore(row_line(**PREDICTION | {"split": "holdout"})),
        "{at}/p/predictions.jsonl:1: split is 'holdout', expected one of forget, retain",
    ),
    Bad(
        "a prediction twice",
        lambda p: p.rescore(2 * row_line(**PREDICTION)),
        "{at}/p/predictions.jsonl:2: forget row 'a' was already on line 1; keep one generation for each row",
    ),
    Bad(
        "predictions in bytes",
        lambda p: p.rescore(b"\xff\xfe"),
        (
            "{at}/p/predictions.jsonl:1: expected a JSON object, cannot read it ('utf-8' codec can't decode byte "
            "0xff in position 0: invalid start byte); restore the file, or remove that line"
        ),
    ),
    Bad(
        "nothing to report",
        lambda p: ["report", p.at / "target"],
        (
            "{at}/target: expected a run's folder (run.yaml, log.jsonl, evaluation/) or an evaluation's "
            "(results.json), found none of these files; give the folder that `letheon unlearn` or `letheon "
            "evaluate` got as --out"
        ),
    ),
    Bad(
        "a report of no folder",
        lambda p: ["report", p.at / "targt"],
        (
            "{at}/targt: no such folder (did you mean 'target'?); expected the folder that a run, an evaluation or a "
            "study got as --out"
        ),
    ),
    Bad(
        "a report of half a study",
        lambda p: p.report("study.json", "{}"),
        "{at}/old/study.json: expected schema 'letheon.study/1'; run the study again, which writes it anew",
    ),
    Bad(
        "settings of runs for a study",
        lambda p: ["study", p.file("s.yaml", "model: target\nrank: 3\n"), "--out", p.at / "run"],
        "{at}/s.yaml: model, rank: expected the sections of a study, got settings of runs; put them under `base:`",
    ),
    Bad(
        "results that are not JSON",
        lambda p: p.report("results.json", "{"),
        (
            "{at}/old/results.json: expected JSON (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1))"
        ),
    ),
    Bad(
        "results of another schema",
        lambda p: p.report("results.json", "{}"),
        (
            "{at}/old/results.json: expected a results file with schema 'letheon.results/1'; is it a "
            "results.json of evaluate?"
        ),
    ),
    Bad(
        "results of other types",
        lambda p: p.report("results.json", json.dumps(RESULT)),
        (
            "{at}/old/results.json: does not follow schema 'letheon.results/1' (mmlu.accuracy: Input should be a "
            "valid number, unable to parse string as a number, got 'high'); run evaluate again"
        ),
    ),
    Bad(
        "a log that is none",
        lambda p: p.report("log.jsonl", "step 1\n{}\n"),
        (
            "{at}/old/log.jsonl:1: expected a JSON object, cannot read it (Expecting value: line 1 column 1 (char 0)); "
            "restore the file, or remove that line"
        ),
    ),
    Bad(
        "a step without a number",
        lambda p: p.report("log.jsonl", '{"event": "step", "step": "a"}\n{}\n'),
        "{at}/old/log.jsonl:1: expected `step` to be a number or null, got 'a'",
    ),
    Bad(
        "a run's settings in a list",
        lambda p: p.report("run.yaml", "- a\n"),
        "{at}/old/run.yaml: expected a mapping of names to values, got list",
    ),
    Bad(
        "a run's settings that make an object",
        lambda p: p.report("run.yaml", OBJECT),
        (
            "{at}/old/run.yaml: expected a mapping of names to values, cannot read it (line 1, column 7: could "
            "not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'); restore the "
            "file, or remove it to make the report without it"
        ),
    ),
    Bad(
        "nothing to purge",
        lambda p: ["purge", p.at / "target"],
        (
            "{at}/target: expected the folder of a run, a study, an evaluation or an audit (run.yaml, log.jsonl, "
            "form.json, provenance.json, outside.json, results.json, study.json), found none of these files; give what "
            "was --out"
        ),
    ),
]
