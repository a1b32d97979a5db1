"""Whatever a file or a setting holds, what comes of it is a result or a LetheonError, never a traceback."""

import contextlib
import dataclasses
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from letheon.data.benchmarks.lume import read_lume
from letheon.data.rows import Row, read_documents, read_rows, read_text
from letheon.errors import LetheonError, SettingsError
from letheon.evaluation.metrics.found import MembershipScores, MmluScores
from letheon.evaluation.predicting import predict, score_again
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import rescore
from letheon.evaluation.suites.lume.official import complete_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.model.checkpoint_files import check_checkpoint
from letheon.purging.purge import purge
from letheon.recipes import read_recipe
from letheon.report.card import model_card
from letheon.report.files import read_log, read_run
from letheon.report.tables import before_after, to_csv, to_markdown
from letheon.scores.results import Results
from letheon.settings import (
    DemoSettings,
    EvaluateSettings,
    MemorizeSettings,
    RescoreSettings,
    Settings,
    UnlearnSettings,
    read_config,
)
from letheon.storage.visible import visible_line
from letheon.storage.yaml_text import parse_yaml
from letheon.studies.records import read_study_record
from letheon.studies.spec import StudySettings, read_study
from letheon.unlearning.resolve import resolve_settings

few = settings(max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

texts = st.text(st.characters(exclude_categories=()), max_size=20)
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.booleans()
values = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
columns = st.sampled_from(["id", "input", "output", "prompt", "answer", "question", "task", "kind", "document", "text"])
records = st.dictionaries(columns, values, max_size=6)
roles = st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool"])
messages = st.fixed_dictionaries({"role": roles, "content": texts | values}) | st.dictionaries(
    texts, values, max_size=2
)
layouts = st.dictionaries(
    st.sampled_from(
        [*("instruction", "input", "output", "prompt", "completion", "chosen", "messages", "conversations")]
    )
    | st.sampled_from(["question", "answer", "text", "system", "history", "tools", "id", "context"]),
    st.lists(messages, max_size=4) | texts | values,
    max_size=5,
)
blobs = st.binary(max_size=80) | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))

ALL_SETTINGS: tuple[type[Settings], ...] = (
    UnlearnSettings,
    EvaluateSettings,
    MemorizeSettings,
    RescoreSettings,
    DemoSettings,
)


def survives(function: Any, *arguments: Any, **keywords: Any) -> None:
    """Call it; a LetheonError with one paragraph is as good as a result."""
    said = "something"
    try:
        function(*arguments, **keywords)
    except LetheonError as error:
        said = str(error)
    assert 0 < len(said) < 4000
    assert not [c for c in visible_line(said) if unicodedata.category(c) in ("Cc", "Cf", "Cs")]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@few
@given(content=blobs, suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".parquet", ".txt", ""]))
@example(content=b"\xef\xbb\xbf[", suffix=".json")
@example(content=b'"' * 3, suffix=".csv")
@example(content=b"PAR1" * 3, suffix=".parquet")
@example(content=b"\r", suffix=".csv")
def test_bytes_as_rows(at: Path, content: bytes, suffix: str) -> None:
    path = at / f"rows{suffix}"
    path.write_bytes(content)
    for read in (read_rows, read_documents, read_text):
        survives(read, path)


@few
@given(given_records=st.lists(records, min_size=1, max_size=4), as_list=st.booleans())
@example(given_records=[{"input": "a", "output": "b", "id": True}], as_list=False)
@example(given_records=[{"id": 2**70, "input": "a\ud800", "output": "b"}], as_list=False)
def test_records_as_rows(at: Path, given_records: list[dict[str, Any]], as_list: bool) -> None:
    path = at / "records.json"
    path.write_text(json.dumps(given_records) if as_list else "".join(json.dumps(r) + "\n" for r in given_records))
    survives(read_rows, path)
    survives(read_rows, path, fields={"prompt": "text", "answer": "document"})
    survives(read_documents, path)


@few
@given(
    given_records=st.lists(layouts, max_size=3),
    every=st.booleans(),
)
@example(given_records=[{"messages": [{"role": "user", "content": "\ud800"}]}], every=True)
@example(given_records=[{"messages": [{"role": ["a"], "content": "b"}]}], every=False)
@example(given_records=[{"prompt": [{}], "completion": [{}]}], every=False)
def test_records_in_any_layout(at: Path, given_records: list[dict[str, Any]], every: bool) -> None:
    path = at / "layouts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in given_records))
    survives(read_rows, path, turns="every" if every else "last")


@few
@given(cells=st.lists(st.lists(texts, max_size=4), max_size=4))
def test_cells_as_rows(at: Path, cells: list[list[str]]) -> None:
    path = at / "cells.csv"
    content = "".join(",".join(row) + "\n" for row in [["input", "output", "id"], *cells])
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    survives(read_rows, path)


@few
@given(source=texts)
@example(source="hub:")
@example(source="hub:a@")
@example(source="\0.jsonl")
@example(source="/" + "a" * 5000 + ".csv")
def test_names_of_sources(source: str) -> None:
    if source.startswith("hub:") and "@" in source.removeprefix("hub:").rstrip("@"):
        return  # that would ask the hub
    with contextlib.suppress(OSError):  # what the system says of a name is told by the command line
        survives(read_rows, source)
        survives(check_checkpoint, source)
        survives(read_lume, source)


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: kind.__name__)
@few
@given(data=st.data())
def test_values_as_settings(kind: type[Settings], data: st.DataObject) -> None:
    names = st.sampled_from(list(kind.model_fields)) | texts
    survives(kind.of, data.draw(st.dictionaries(names, values, max_size=5)))
    required = {name: "x" for name, field in kind.model_fields.items() if field.is_required()}
    survives(kind.of, required | data.draw(st.dictionaries(names, values, max_size=2)))


@few
@given(data=st.data())
def test_settings_that_contradict_one_another(data: st.DataObject) -> None:
    given_values: dict[str, Any] = {"model": "m", "forget": "f", "retain": "r", "out": "o"}
    for name in data.draw(st.lists(st.sampled_from(list(UnlearnSettings.model_fields)), max_size=6, unique=True)):
        given_values[name] = data.draw(
            st.sampled_from(
                ["a", "npo", "lora", "weights", "forget", "1:2", "all", 0, 1, 2.5, -1, True, None, {"beta": 1}]
            )
        )
    with contextlib.suppress(SettingsError):
        survives(resolve_settings, UnlearnSettings.of(given_values))


@few
@given(content=blobs | values.map(lambda value: json.dumps(value).encode()))
@example(content=b"a: &a [*a]")
@example(content=b"<<: 1")
@example(content=b"? [a]\n: b")
@example(content=b"a: 2025-02-30")
@example(content=b"a: 0x")
@example(content=b"a: 1__:2:61")
@example(content=b"!!timestamp x")
@example(content=b"!!int ''")
@example(content=b"a: !!binary '*'")
@example(content=b"%YAML 9.9\n--- a")
@example(content=b"[" * 600)
@example(content=b"&a a: *b")
@example(content=b"? {a: 1}\n: b\n? {a: 2}\n: c")
def test_bytes_as_a_settings_file(at: Path, content: bytes) -> None:
    path = at / "settings.yaml"
    path.write_bytes(content)
    survives(lambda: UnlearnSettings.of(read_config(path)))
    survives(read_study, path)
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
        parse_yaml(content.decode())


@few
@given(data=st.data())
def test_values_in_a_study(at: Path, data: st.DataObject) -> None:
    names = st.sampled_from([field.alias or name for name, field in StudySettings.model_fields.items()])
    path = at / "study.yaml"
    path.write_text(json.dumps(data.draw(st.dictionaries(names, values, max_size=4))))
    survives(read_study, path)
    survives(read_study, path, changes=data.draw(st.lists(texts, max_size=2)))


@few
@given(name=texts)
def test_names_of_recipes(name: str) -> None:
    survives(read_recipe, name)


PREDICTION = dataclasses.asdict(predict(Row("a", "Who?", "Mira", "Task1", "question"), "forget", "Mira"))
RESULTS = json.loads(
    complete_results(
        LumeResults(suite="lume", model="m"),
        [predict(Row("a", "Who?", "Mira", "Task1", "question"), "forget", "Mira")],
        mia=MembershipScores(0.5, (0.4, 0.6), 1.0, (0.8, 1.0), 1.0, 1.0, 2, 2),
        mmlu=MmluScores(0.5, {"bees": 0.5}, 2, 5, None),
        missing={},
    ).to_json()
)


@st.composite
def changed(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """A mapping with one value somewhere in it replaced by anything."""
    made: dict[str, Any] = json.loads(json.dumps(whole))
    place = made
    while True:
        name = draw(st.sampled_from(sorted(place)))
        if isinstance(place[name], dict) and place[name] and draw(st.booleans()):
            place = place[name]
        else:
            place[name] = draw(values)
            return made


@few
@given(lines=st.lists(changed(PREDICTION), max_size=3), tail=blobs)
def test_changed_predictions(at: Path, lines: list[dict[str, Any]], tail: bytes) -> None:
    path = at / "predictions.jsonl"
    for rest in (b"", tail):
        path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + rest)
        survives(score_again, path)
        survives(rescore, path)


@few
@given(content=changed(RESULTS).map(json.dumps).map(str.encode) | blobs)
@example(content=json.dumps(RESULTS | {"mmlu": {"accuracy": math.nan}}).encode())
def test_changed_results(at: Path, content: bytes) -> None:
    path = at / "results.json"
    path.write_bytes(content)
    survives(read_results, path)
    try:
        results = read_results(path)
    except LetheonError:
        return
    table = before_after(None, results)
    to_csv(table)
    to_markdown(table)
    model_card(settings={}, provenance=results.provenance, results=results)
    assert read_results(_written(at, results)).to_json() == results.to_json()


def _written(at: Path, results: Results) -> Path:
    path = at / "again.json"
    path.write_text(results.to_json())
    return path


EVENTS: list[dict[str, Any]] = [
    {"event": "start", "time": "now", "num_rows": 2, "reference_store": "x.safetensors"},
    {"event": "step", "step": 1, "epoch": 0.5, "loss": 1.0, "terms": {"npo": 1.0}, "duration_s": 1.0, "num_tokens": 5},
    {"event": "interim", "epoch": 1.0, "forget_recall": 0.5, "retain_recall": 0.5, "score": 0.5},
    {"event": "note", "message": "a note"},
    {"event": "end", "reason": "finished", "step": 2, "epoch": 1.0, "kept_epoch": 1.0, "duration_s": 1.0},
]


@few
@given(lines=st.lists(st.sampled_from(EVENTS).flatmap(changed), max_size=4), tail=blobs)
def test_changed_logs(at: Path, lines: list[dict[str, Any]], tail: bytes) -> None:
    path = at / "log.jsonl"
    for rest in (b"", tail):
        path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + rest)
        survives(read_log, path)


@few
@given(name=st.sampled_from(["run.yaml", "provenance.json", "log.jsonl"]), content=blobs)
def test_bytes_in_a_runs_folder(at: Path, name: str, content: bytes) -> None:
    folder = at / "run"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / name).write_bytes(content)
    survives(read_run, folder)
    survives(purge, folder, dry_run=True, note=str)


@few
@given(content=blobs | values.map(lambda value: json.dumps(value).encode()))
def test_bytes_as_a_studys_record(at: Path, content: bytes) -> None:
    (at / "study.json").write_bytes(content)
    survives(read_study_record, at)


@few
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json"]),
    content=blobs | values.map(lambda value: json.dumps(value).encode()),
)
@example(name="model.safetensors.index.json", content=b'{"weight_map": {"a": "\\ud800"}}')
@example(name="model.safetensors.index.json", content=b'{"weight_map": {"a": "a\\u0000b"}}')
@example(name="model.safetensors", content=b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
@example(name="model.safetensors", content=b"\xff" * 16)
def test_bytes_in_a_checkpoint(at: Path, name: str, content: bytes) -> None:
    folder = at / "checkpoint"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(content)
    survives(check_checkpoint, str(folder))
