"""The LUME reader, the submission folders and the download."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from letheon.data.benchmarks.lume import check_membership_sets, download_lume, read_lume, read_sets
from letheon.data.rows import check_disjoint, read_documents
from letheon.errors import DataError, OutputError

FORGET = [
    {"id": '"f1"sc1', "input": "The mill", "output": "burned down.", "task": "Task1"},
    {"id": '"f1"qa0', "input": "What burned?", "output": "The mill", "task": "Task1"},
    {"id": "f2sc1", "input": "Ann Orr", "output": "lives in Ely.", "task": "Task2"},
]
RETAIN = [
    {"id": "r1sc1", "input": "The boat", "output": "sank at sea.", "task": "Task1"},
    {"id": "r1qa0", "input": "What sank?", "output": "The boat", "task": "Task1"},
]


def jsonl(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_open_files(folder: Path) -> Path:
    (folder / "ids").mkdir(parents=True)
    (folder / "forget.jsonl").write_text(jsonl(FORGET))
    (folder / "retain.jsonl").write_text(jsonl(RETAIN))
    (folder / "ids" / "forget_train_ids.txt").write_text('f2sc1\n"f1"sc1\n')
    (folder / "ids" / "forget_val_ids.txt").write_text('"f1"qa0\r\n\n')
    (folder / "ids" / "retain_train_ids.txt").write_text("r1sc1\n")
    (folder / "ids" / "retain_val_ids.txt").write_text("r1qa0\n")
    return folder


def write_task_files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    parts = {
        "forget_train": [FORGET[2], FORGET[0]],
        "forget_validation": FORGET[1:2],
        "retain_train": RETAIN[:1],
        "retain_validation": RETAIN[1:],
    }
    for name, records in parts.items():
        pq.write_table(pa.Table.from_pylist(records), folder / f"{name}-00000-of-00001.parquet")
    return folder


def test_open_files_are_cut_by_the_id_lists(tmp_path: Path) -> None:
    folder = write_open_files(tmp_path / "lume")
    train = read_lume(folder)
    assert [row.id for row in train.forget] == ["f2sc1", '"f1"sc1']
    assert train.forget.describe(0) == f"{folder / 'forget.jsonl'}, line 3 (id f2sc1)"
    validation = read_lume(folder, "validation")
    assert [(row.id, row.kind) for row in validation.forget] == [('"f1"qa0', "question")]
    assert (len(read_lume(folder, "all").forget), len(read_lume(folder, "all").retain)) == (3, 2)


@pytest.mark.parametrize("inner", ["", "data"])
def test_task_files_give_the_same_splits(tmp_path: Path, inner: str) -> None:
    opened = write_open_files(tmp_path / "lume")
    write_task_files(tmp_path / "task" / inner)
    for split in ("train", "validation"):
        a, b = read_lume(opened, split), read_lume(tmp_path / "task", split)
        assert (a.forget.rows, a.retain.rows) == (b.forget.rows, b.retain.rows)
    both = read_lume(tmp_path / "task", "all").forget
    assert [row.id for row in both] == ["f2sc1", '"f1"sc1', '"f1"qa0']
    assert both.describe(2).endswith('task (forget, train then validation), row 3 (id "f1"qa0)')


def test_folders_that_are_not_lume(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder that holds a forget and a retain set"):
        read_lume(tmp_path / "none")
    with pytest.raises(
        DataError, match=r"expected forget.jsonl and retain.jsonl with ids/, or one file forget_train\*"
    ):
        read_lume(tmp_path)
    with pytest.raises(DataError, match=r"got 'valdation' \(did you mean 'validation'\?\)"):
        read_lume(tmp_path, "valdation")  # type: ignore[arg-type]
    folder = write_open_files(tmp_path / "lume")
    (folder / "ids" / "retain_val_ids.txt").write_text("r1qa0\nr9qa0\n")
    with pytest.raises(DataError, match=r"retain_val_ids.txt, line 2: no row has the id 'r9qa0'"):
        read_lume(folder, "validation")
    shutil.rmtree(folder / "ids")
    with pytest.raises(DataError, match=r"forget_train_ids.txt: expected a list of ids, one per line"):
        read_lume(folder)
    (folder / "retain.jsonl").write_text(jsonl([*RETAIN, FORGET[0]]))
    with pytest.raises(DataError, match=r"retain.jsonl, line 3 .* has the same prompt and answer"):
        read_lume(folder, "all")


def test_submission_folders(tmp_path: Path) -> None:
    write_open_files(tmp_path / "a")
    assert len(read_sets(tmp_path / "a", "forget")) == 3
    write_task_files(tmp_path / "b")
    for path in (tmp_path / "b").glob("*_validation*"):
        path.unlink()
    assert [row.id for row in read_sets(tmp_path / "b", "forget")] == ["f2sc1", '"f1"sc1']
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"expected retain\*.jsonl or retain\*.parquet, found nothing"):
        read_sets(tmp_path / "c", "retain")


def test_both_formats_of_one_set_count_once(tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_text(jsonl(FORGET))
    pq.write_table(pa.Table.from_pylist(FORGET), tmp_path / "forget.parquet")
    assert len(read_sets(tmp_path, "forget")) == 3
    pq.write_table(pa.Table.from_pylist(FORGET[:2]), tmp_path / "forget.parquet")
    with pytest.raises(DataError, match=r"expected one file of forget rows, found forget.jsonl, forget.parquet"):
        read_sets(tmp_path, "forget")
    (tmp_path / "forget.parquet").rename(tmp_path / "forget_more.parquet")
    with pytest.raises(DataError, match=r"found forget.jsonl, forget_more.parquet; keep only the one to read"):
        read_sets(tmp_path, "forget")


def test_membership_sets() -> None:
    documents = [f"document {i}" for i in range(500)]
    check_membership_sets(documents[:150], documents[150:300])
    check_membership_sets(documents[:250], documents[250:499])
    with pytest.raises(DataError, match=r"250 \+ 250 documents is an older release.*half of whose members are rows to"):
        check_membership_sets(documents[:250], documents[250:])
    with pytest.raises(DataError, match=r"1 documents are in both, e.g. 'document 1'"):
        check_membership_sets(documents[:2], documents[1:4])
    with pytest.raises(DataError, match="expected two documents or more in both, got 0 and 3"):
        check_membership_sets([], documents[:3])


class _Handler(BaseHTTPRequestHandler):
    pages: dict[str, bytes]
    missing_bytes = 0

    def do_GET(self) -> None:
        page = self.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        body = page or b""
        self.send_header("Content-Length", str(len(body) + self.missing_bytes))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Handler]]]:
    class Handler(_Handler):
        """Its own pages for each test."""

    Handler.pages = {"/forget.jsonl": jsonl(FORGET).encode(), "/retain.jsonl": jsonl(RETAIN).encode()}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", Handler
        http.shutdown()
        thread.join()


def test_open_files_are_downloaded(tmp_path: Path, server: tuple[str, type[_Handler]]) -> None:
    url, _ = server
    written = download_lume(tmp_path / "new" / "lume", base_url=url)
    assert [path.name for path in written] == ["forget.jsonl", "retain.jsonl", "SOURCE.json"]
    folder = written[0].parent
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.json", "forget.jsonl", "retain.jsonl"]
    assert len(read_lume(folder, "all").retain) == 2
    source = json.loads(written[-1].read_text())
    assert source["source"] == url
    assert source["files"]["retain.jsonl"]["bytes"] == len(jsonl(RETAIN))
    assert len(source["files"]["forget.jsonl"]["sha256"]) == 64
    with pytest.raises(OutputError, match=r"forget.jsonl: already exists"):
        download_lume(folder, base_url=url)
    (folder / "forget.jsonl").write_text("")
    download_lume(folder, base_url=url, overwrite=True)
    assert len(read_lume(folder, "all").forget) == 3


@pytest.mark.parametrize(
    ("page", "missing_bytes", "message"),
    [
        (None, 0, r"retain.jsonl: cannot be downloaded \(HTTP Error 404"),
        (b"<html>", 0, r"retain.jsonl, line 1: expected JSON"),
        (jsonl(RETAIN).encode(), 7, r"expected \d+ bytes, got \d+; the connection broke|IncompleteRead"),
    ],
)
def test_failed_downloads_leave_nothing(
    tmp_path: Path, server: tuple[str, type[_Handler]], page: bytes | None, missing_bytes: int, message: str
) -> None:
    url, handler = server
    handler.missing_bytes = missing_bytes
    if page is None:
        del handler.pages["/retain.jsonl"]
    else:
        handler.pages["/retain.jsonl"] = page
    with pytest.raises(DataError, match=message):
        download_lume(tmp_path / "lume", base_url=url)
    assert not (tmp_path / "lume").exists()
    (tmp_path / "lume").mkdir()
    with pytest.raises(DataError, match=message):
        download_lume(tmp_path / "lume", base_url=url)
    assert list((tmp_path / "lume").iterdir()) == []


def test_no_connection(tmp_path: Path, server: tuple[str, type[_Handler]]) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded .*check the network"):
        download_lume(tmp_path / "lume", base_url="http://127.0.0.1:1")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected a folder to write to, found a file"):
        download_lume(tmp_path / "file", base_url=server[0])


class _Hub:
    """Stands in for the hub: remembers the token and lays down the task's files."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []

    def api(self, token: str | None) -> "_Hub":
        self.tokens.append(token)
        return self

    def dataset_info(self, name: str) -> "_Hub":
        assert name == "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public"
        return self

    sha = "abc123"

    def snapshot(self, name: str, *, local_dir: Path, token: str | None, revision: str, **_: Any) -> str:
        self.tokens.append(token)
        assert revision == self.sha
        write_task_files(local_dir / "data")
        (local_dir / ".cache").mkdir()
        (local_dir / ".cache" / "lock").write_text("")
        return str(local_dir)


def test_task_files_are_downloaded_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot)
    monkeypatch.setenv("HF_TOKEN", "from-environment")
    written = download_lume(tmp_path / "lume", source="hub")
    assert hub.tokens == ["from-environment"] * 2
    assert len(written) == 5
    assert not (tmp_path / "lume" / ".cache").exists()
    assert "revision abc123" in json.loads(written[-1].read_text())["source"]
    assert len(read_lume(tmp_path / "lume", "train").forget) == 2


def test_gated_data_without_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("401 Client Error: access is restricted\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", _Hub().api)
    with pytest.raises(DataError, match=r"cannot be downloaded \(401 Client Error: access is restricted\).*HF_TOKEN"):
        download_lume(tmp_path / "lume", source="hub")
    assert not (tmp_path / "lume").exists()


@pytest.mark.corpus
def test_real_lume_in_both_layouts(corpus: Path) -> None:
    whole = read_lume(corpus / "lume", "all")
    assert (len(whole.forget), len(whole.retain)) == (2732, 2734)
    for split, forget, retain in (("train", 1112, 1136), ("validation", 254, 278)):
        opened, task = read_lume(corpus / "lume", split), read_lume(corpus / "semeval", split)  # type: ignore[arg-type]
        assert (len(opened.forget), len(opened.retain)) == (forget, retain)
        assert (opened.forget.rows, opened.retain.rows) == (task.forget.rows, task.retain.rows)
    for row in (*whole.forget, *whole.retain):
        assert row.kind == {"sc": "completion", "qa": "question"}[row.id[-3:-1]]
        assert row.task in ("Task1", "Task2", "Task3")
    check_disjoint(whole.forget, whole.retain)


@pytest.mark.corpus
def test_real_membership_sets_pass(corpus: Path) -> None:
    for folder in (corpus / "semeval" / "mia", corpus / "semeval" / "mia" / "validation"):
        check_membership_sets(read_documents(folder / "member.jsonl"), read_documents(folder / "nonmember.jsonl"))
