"""Other people's files and models: no code runs unasked, no secret and no row gets out, no network is asked."""

import ast
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import EvaluateSettings, Row, UnlearnSettings, evaluate, unlearn, write_report
from letheon.cli.main import main
from letheon.data.benchmarks import lume
from letheon.data.records import open_records
from letheon.errors import DataError, LetheonError, ModelError, without_secrets
from letheon.model import loading
from letheon.model.loading import load_config, load_model, load_tokenizer
from network import ASKED_FOR
from running import short_run

SOURCE = Path(__file__).parent.parent / "src" / "letheon"


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {**short_run(tmp_path, rows, model, tokenizer), "epochs": 1}


def test_no_source_file_reads_pickles_runs_code_or_loads_yaml_unsafely() -> None:
    banned = {
        "eval",
        "exec",
        "pickle",
        "cPickle",
        "dill",
        "marshal",
        "shelve",
        "joblib",
        "extractall",
        "unpack_archive",
    }
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names) | ast.ImportFrom(names=names):
                    found += [
                        (path.name, a.name) for a in names if a.name.split(".")[0] in banned | {"zipfile", "tarfile"}
                    ]
                case ast.Call(func=ast.Name(id=name)) if name in banned:
                    found.append((path.name, name))
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                    found.append((path.name, "torch.load"))
                case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen")):
                    found.append((path.name, "os.system"))
                case ast.Call(func=ast.Attribute(attr=name)) if name in {"extractall", "unpack_archive"}:
                    found.append((path.name, name))
                case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr=name)) if "load" in name:
                    if path.name != "yaml_text.py":
                        found.append((path.name, f"yaml.{name}"))
                case ast.keyword(arg="shell" | "allow_pickle", value=ast.Constant(value=True)):
                    found.append((path.name, str(node.arg)))
                case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=True)):
                    found.append((path.name, "trust_remote_code=True"))
    assert not found


def test_the_yaml_loader_is_pyyamls_safe_one() -> None:
    from letheon.storage.yaml_text import _Loader, parse_yaml

    assert issubclass(_Loader, yaml.SafeLoader)
    for tag in ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/module:os", "!x y"):
        with pytest.raises(yaml.YAMLError):
            parse_yaml(f"a: {tag}")


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).write_text("ran")
class Config(LlamaConfig):
    model_type = "own"
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def with_code(given: dict[str, Any], tmp_path: Path) -> tuple[str, Path]:
    """A checkpoint that comes with code, and the file that the code writes when it runs."""
    folder, mark = Path(given["model"]), tmp_path / "it-ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder), mark


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
def test_code_of_a_checkpoint_does_not_run_unasked(load: Any, with_code: tuple[str, Path]) -> None:
    source, mark = with_code
    if load is load_tokenizer:
        (Path(source) / "tokenizer_config.json").write_text(
            json.dumps({"auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}, "tokenizer_class": "Own"})
        )
    with pytest.raises(ModelError, match="contains Python code"):
        load(source)
    assert not mark.exists()


def test_the_permission_is_per_call_and_reaches_every_load(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        real = getattr(loading, name)

        class Watched:
            def __init__(self, name: str, real: Any) -> None:
                self.name, self.real = name, real

            def from_pretrained(self, source: object, **kwargs: Any) -> object:
                seen.append((self.name, kwargs["trust_remote_code"]))
                return self.real.from_pretrained(source, **kwargs)

        monkeypatch.setattr(loading, name, Watched(name, real))
    report = unlearn(UnlearnSettings.of({**given, "trust_remote_code": True}))
    assert report.provenance["model"]["trust_remote_code"] is True
    assert yaml.safe_load((report.folder / "run.yaml").read_text())["trust_remote_code"] is True
    assert {name for name, _ in seen} == {"AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"}
    assert all(value is True for _, value in seen)
    seen.clear()
    scored = {**{n: given[n] for n in ("model", "forget", "retain")}, "out": report.folder / "e", "max_new_tokens": 2}
    evaluation = evaluate(EvaluateSettings.of(scored))
    assert evaluation.results.provenance["model"]["trust_remote_code"] is False
    assert seen
    assert all(value is False for _, value in seen)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "pytorch_model.bin.index.json"])
def test_a_pickle_is_never_opened(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    folder, mark = Path(given["model"]), tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode())
    with pytest.raises(ModelError, match=r"expected weights in \*.safetensors"):
        load_model(str(folder))
    assert not mark.exists()


def test_a_pickle_beside_safetensors_is_passed_over(given: dict[str, Any], tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    (Path(given["model"]) / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode())
    load_model(given["model"])
    assert not mark.exists()


def test_a_run_on_local_files_asks_for_no_host(given: dict[str, Any]) -> None:
    report = unlearn(UnlearnSettings.of(given))
    scored = {**{n: given[n] for n in ("model", "forget", "retain")}, "out": report.folder / "e", "max_new_tokens": 2}
    evaluate(EvaluateSettings.of(scored))
    write_report(report.folder)
    assert ASKED_FOR == []


def test_tests_that_ask_for_a_host_are_told_so() -> None:
    import socket

    with pytest.raises(OSError, match="tests reach no network"):
        socket.create_connection(("huggingface.co", 443), timeout=1)
    assert ASKED_FOR == ["huggingface.co"]


TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


def test_a_token_is_in_no_file_of_a_run_and_in_no_message(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("sys.argv", ["letheon", "unlearn", "--tokenizer", f"https://me:{TOKEN}@example.com/x", TOKEN])
    unlearn(UnlearnSettings.of(given))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert "hf_***" in (given["out"] / "provenance.json").read_text()

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError(f"401 for Authorization: Bearer {TOKEN} at postgresql://me:secret@host/db")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr(
        "sys.argv",
        [
            "letheon",
            "evaluate",
            *(f"--{n}={v}" for n, v in given.items() if n in ("model", "retain", "out")),
            "--forget=hub:a/b@train",
        ],
    )
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "401 for Authorization: Bearer hf_*** at postgresql://me:***@host/db" in said
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"a {TOKEN} b", "a hf_*** b"),
        ("mysql://root:p@ss@db:3306/x", "mysql://root:***@db:3306/x"),
        ("https://example.com:443/a@b", "https://example.com:443/a@b"),
        ("hf_hub at user@example.com", "hf_hub at user@example.com"),
        ("", ""),
    ],
)
def test_what_counts_as_a_secret(text: str, masked: str) -> None:
    assert without_secrets(text) == masked


def test_what_holds_rows_is_its_owners_alone(given: dict[str, Any]) -> None:
    before = os.umask(0)
    try:
        folder = unlearn(UnlearnSettings.of(given)).folder
        scored = {n: given[n] for n in ("model", "forget", "retain")} | {"out": folder / "evaluation" / "after"}
        evaluate(EvaluateSettings.of({**scored, "max_new_tokens": 2}))
        write_report(folder)
    finally:
        os.umask(before)
    stores = Path(os.environ["LETHEON_CACHE"]) / "reference"
    held = [folder / "log.jsonl", folder / "report.html", folder / "evaluation" / "after" / "predictions.jsonl"]
    held += [path for part in (folder / "checkpoints", stores) for path in part.rglob("*") if path.is_file()]
    assert len(held) > 6
    for path in held:
        assert mode_of(path) == 0o600, path
    checkpoints = folder / "checkpoints"
    for place in (stores, folder / "evaluation" / "after", checkpoints, *checkpoints.glob("step-*")):
        assert mode_of(place) == 0o700, place
    assert mode_of(folder / "model") == 0o755
    assert mode_of(folder / "model" / "model.safetensors") == 0o644


def test_checkpoints_of_members_are_their_owners_alone(given: dict[str, Any]) -> None:
    before = os.umask(0)
    try:
        folder = unlearn(UnlearnSettings.of({**given, "method": "npo-ties"})).folder
    finally:
        os.umask(before)
    places = [folder / "checkpoints", *(path for path in (folder / "checkpoints").rglob("*") if path.is_dir())]
    assert "member-2" in {place.name for place in places}
    assert {mode_of(place) for place in places} == {0o700}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_download_that_holds_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(folder: Path, _: object) -> str:
        for name in ("forget", "retain"):
            (folder / f"{name}.jsonl").write_text(json.dumps({"id": name, "input": name, "output": "b"}) + "\n")
        (folder / "more").symlink_to("/etc")
        return "somewhere"

    monkeypatch.setattr(lume, "_fetch_open_files", fetch)
    with pytest.raises(DataError, match="holds a symbolic link"):
        lume.download_lume(tmp_path / "lume")
    assert not (tmp_path / "lume").exists()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.safetensors", "sub/../../x.safetensors", "..", "a/b", "c\\d"]
)
def test_a_list_of_shards_leads_nowhere_else(given: dict[str, Any], name: str) -> None:
    folder = Path(given["model"])
    save_file({}, folder.parent / "secret.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"expected names of files"):
        load_model(str(folder))


def test_a_data_set_on_the_hub_brings_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, str]]:
        seen.update(kwargs)
        return [{"input": "a", "output": "b"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(open_records("hub:owner/name@train").entries) == [(1, {"input": "a", "output": "b"})]
    assert "trust_remote_code" not in seen


def test_yaml_that_doubles_itself_does_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)), "epochs: *a39"]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    from letheon.settings import read_config

    with pytest.raises(LetheonError) as raised:
        UnlearnSettings.of({"model": "m", "forget": "f", "retain": "r", "out": "o", **read_config(tmp_path / "c.yaml")})
    assert len(str(raised.value)) < 10_000
