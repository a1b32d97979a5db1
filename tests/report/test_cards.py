"""The cards in model/ and adapter/, which go where these go: they tell nothing of the machine that made them."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from letheon.api import evaluate
from letheon.cli.main import cli
from letheon.data.rows import Row
from letheon.report.card import adapter_card, model_card
from letheon.report.shareable import HIDDEN, PLACES, shareable_provenance, shareable_settings, shareable_text
from letheon.settings import EvaluateSettings, UnlearnSettings
from running import short_run

SETTINGS = {"model": "/home/mira/base", "forget": "secret/forget.jsonl", "out": "runs/1", "method": "npo", "epochs": 3}


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {**short_run(tmp_path, rows, model, tokenizer), "epochs": 1}


def invoke(*arguments: object) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def texts_in(*folders: Path) -> dict[str, str]:
    """Each file that is not weights, as text."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_text() for path in paths if path.suffix != ".safetensors"}


@pytest.mark.slow
def test_what_is_shared_tells_nothing_of_the_machine_unless_asked(given: dict[str, Any], tmp_path: Path) -> None:
    flags = {name: value for name, value in given.items() if name not in ("trackers", "evaluate")}
    pairs = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    invoke("unlearn", *pairs, "--trackers", "", "--no-evaluate", "--cache-dir", tmp_path / "cache")
    folder = given["out"]
    scored = {"model": str(folder / "model"), "forget": given["forget"], "retain": given["retain"]}
    evaluate(EvaluateSettings.of({**scored, "max_new_tokens": 2, "out": folder / "evaluation" / "after"}))
    for flag in ((), ("--show-paths",), ()):
        invoke("report", folder, *flag)
        texts = texts_in(folder / "model", folder / "adapter")
        private = (str(tmp_path), socket.gethostname(), "forget.jsonl", "retain.jsonl", "Linux-")
        found = {(name, word) for name, text in texts.items() for word in private if word in text}
        cards = {str(folder / part / "README.md") for part in ("model", "adapter")}
        assert {name for name, _ in found} == (cards if flag else set())
    assert "forget.sha256" in texts[str(folder / "model" / "README.md")]
    assert "Forget" in texts[str(folder / "model" / "README.md")]
    assert "More Information Needed" not in "".join(texts.values())


def test_an_adapter_loads_without_the_name_of_its_model(given: dict[str, Any]) -> None:
    invoke("unlearn", *(f"--{name}={given[name]}" for name in ("model", "forget", "retain", "out", "template")),
           "--trackers=", "--epochs=1", "--no-evaluate")  # fmt: skip
    config = json.loads((given["out"] / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given["model"]), str(given["out"] / "adapter"))


def test_every_setting_that_is_a_path_is_known_as_one() -> None:
    fields = UnlearnSettings.model_fields.items()
    assert {name for name, field in fields if "Path" in str(field.annotation)} <= set(PLACES)
    assert set(PLACES) <= set(UnlearnSettings.model_fields)


def test_settings_that_may_be_shown() -> None:
    shown = shareable_settings({**SETTINGS, "tokenizer": "owner/tokenizer", "template": "/etc/x", "cache_dir": None})
    assert shown == {"model": "MODEL", "forget": "FORGET", "out": "OUT", "method": "npo", "epochs": 3,
                     "tokenizer": "owner/tokenizer", "cache_dir": None}  # fmt: skip


def test_provenance_that_may_be_shown() -> None:
    provenance = {
        "command": ["letheon"], "machine": {"platform": "x"}, "attempts": [{"command": "x"}], "seed": 3,
        "model": {"source": "base", "sha256": "ab"}, "new": {"place": "/x/y", "list": ["a", "~/z"], "kept": "a/b"},
        "said": "rows of secret/forget.jsonl", "url": "https://arxiv.org/abs/1", "reference_store": "c/reference/x",
    }  # fmt: skip
    assert shareable_provenance(provenance, settings=SETTINGS) == {
        "seed": 3, "model": {"sha256": "ab"}, "new": {"kept": "a/b"}, "url": "https://arxiv.org/abs/1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("of /home/mira/base, not of the run", f"of {HIDDEN}, not of the run"),
        ("it read 'secret/forget.jsonl'", f"it read '{HIDDEN}'"),
        ("(~/x) C:\\y\\z", f"({HIDDEN}) {HIDDEN}"),
        ("and/or 1/2 https://a.b/c", "and/or 1/2 https://a.b/c"),
    ],
)
def test_text_that_may_be_shown(text: str, shown: str) -> None:
    assert shareable_text(text, settings=SETTINGS) == shown


def test_a_doubt_about_the_scores_names_no_path() -> None:
    said = "the evaluation is of /home/mira/other, not of this model"
    cards = {
        show: model_card(settings=SETTINGS, provenance={}, results=None, doubt=said, show_paths=show)
        for show in (False, True)
    }
    assert {show: "mira/other" in card for show, card in cards.items()} == {False: False, True: True}
    assert "not of this model" in cards[False]


def test_cards_without_places_say_how_and_of_what(tmp_path: Path) -> None:
    card = model_card(settings=SETTINGS, provenance={"seed": 3}, results=None)
    assert "letheon unlearn --model MODEL --forget FORGET --out OUT --method npo --epochs 3" in card
    assert "An unlearned version of a causal language model" in card
    assert "Rows to forget: not named here" in card
    of_adapter = adapter_card(settings={**SETTINGS, "model": "owner/base"}, provenance={"seed": 3})
    _, matter, text = of_adapter.split("---\n", 2)
    expected = {"base_model": "owner/base", "library_name": "peft", "tags": ["unlearning", "letheon"]}
    assert yaml.safe_load(matter) == expected
    assert "# What was changed in owner/base" in text
    assert "publish the merged model rather than this" in text
