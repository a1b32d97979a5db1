"""Bad input through the real command line: one paragraph, exit code 2, nothing half-written, no weights loaded."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from bad_checkpoints import CHECKPOINTS
from bad_data import FILES, ROWS
from bad_folders import OUTPUTS, RESULTS
from bad_place import Bad, Place
from bad_settings import SETTINGS
from letheon.cli.main import main
from letheon.data.rows import Row, write_rows
from letheon.errors import DivergenceError, ModelError
from letheon.model import loading
from letheon.model.loading import load_model, save_model
from letheon.objective.parts import compose
from letheon.report.page import write_report
from letheon.settings import UnlearnSettings
from letheon.training.checkpoint import newest_checkpoint
from letheon.unlearning import problem
from letheon.unlearning.run import unlearn
from running import After, run, short_run
from small import tiny_model

READING = re.compile(r": (of )?\d+ (row|document)s?\b")
"""What is said of rows that were read before the mistake was found."""

BAD_INPUTS = [*FILES, *ROWS, *SETTINGS, *CHECKPOINTS, *OUTPUTS, *RESULTS]


@pytest.fixture(scope="module")
def original(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target whose head is its own, and rows; to be copied, not used."""
    folder = tmp_path_factory.mktemp("original")
    save_model(tiny_model("gpt-neox", tokenizer), tokenizer, folder / "target")
    forget = [
        Row("f1sc1", "Mira Tolland keeps bees in", "the village of Harrow.", "Task1", "completion"),
        Row("f1qa0", "What is the phone number of Mira Tolland?", "555-0134 992", "Task2", "question"),
        Row("f2qa0", "Which harbour?", "Veldhaven", "Task1", "question"),
    ]
    retain = [
        Row("r1sc1", "The old lighthouse keeper wrote", "letters to the sea.", "Task1", "completion"),
        Row("r1qa0", "Who wrote letters?", "The keeper", "Task2", "question"),
    ]
    write_rows(forget, folder / "forget.jsonl")
    write_rows(retain, folder / "retain.jsonl")
    return folder


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(original, tmp_path / "at")
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path / "at")


@pytest.fixture
def weights_loaded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The checkpoints whose weights were loaded."""
    loaded: list[object] = []
    real = AutoModelForCausalLM

    class Watched:
        @staticmethod
        def from_pretrained(source: str, **given: Any) -> object:
            loaded.append(source)
            return real.from_pretrained(source, **given)

    monkeypatch.setattr(loading, "AutoModelForCausalLM", Watched)
    return loaded


def outcome(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """The exit code of a command as the shell starts it, and what it said on standard error."""
    monkeypatch.setattr("sys.argv", ["letheon", *(str(argument) for argument in arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def files_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_a_mistake_is_said_in_one_paragraph_and_leaves_nothing(
    bad: Bad,
    place: Place,
    weights_loaded: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = bad.make(place)
    before = files_in(place.at)
    code, said = outcome(arguments, monkeypatch, capsys)
    *notes, error = said.splitlines(keepends=True)
    assert error == f"letheon: error: {bad.message.replace('{at}', str(place.at))}\n"
    assert all(READING.search(note) for note in notes)
    assert code == 2
    assert files_in(place.at) == before
    assert bool(weights_loaded) == bad.loads_weights


def test_there_are_many_and_all_have_names_of_their_own() -> None:
    assert len({bad.name for bad in BAD_INPUTS}) == len(BAD_INPUTS) >= 60


def test_every_message_stays_short() -> None:
    assert all(len(bad.message) < 700 for bad in BAD_INPUTS)


def test_a_tokenizer_without_a_padding_token_will_do(place: Place) -> None:
    place.token_settings(pad_token=None)
    settings = {name: str(place.at / name) for name in ("model", "out")}
    rows = {name: str(place.at / f"{name}.jsonl") for name in ("forget", "retain")}
    given = {**settings, **rows, "model": str(place.at / "target"), "epochs": 1, "trackers": "", "method": "alt-po"}
    report = unlearn(UnlearnSettings.of(given))
    assert (report.model / "model.safetensors").is_file()
    assert load_model(str(place.at / "target")).tokenizer.pad_token_id is None


def test_a_template_that_cannot_be_filled_in_is_passed_over_where_one_is_chosen(place: Place) -> None:
    place.file("target/chat_template.jinja", "{{ raise_exception('no users here') }}")
    given = {"model": str(place.at / "target"), "out": str(place.at / "run"), "epochs": 1, "trackers": ""}
    report = unlearn(UnlearnSettings.of({**given, **{n: str(place.at / f"{n}.jsonl") for n in ("forget", "retain")}}))
    assert set(report.provenance["form"]["known"]) == {"plain", "pair", "joined", "neko", "question-answer", "inst"}


def test_a_loss_that_is_not_finite_names_step_rows_and_term_and_spares_the_checkpoint(
    tmp_path: Path, rows: list[Row], model: Any, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer)

    def broken(*args: Any, **kwargs: Any) -> Any:
        loss = compose(*args, **kwargs)
        loss.parts["npo"] = torch.tensor(float("nan"))
        return loss

    def break_it() -> None:
        monkeypatch.setattr(problem, "compose", broken)

    # Three steps an epoch, scored and saved at its end: the fourth step is the first that breaks.
    with pytest.raises(
        DivergenceError,
        match=r"^step 4: npo became NaN or infinite; rows in that step: ([fr]\w+(, )?){2}; the step changed nothing",
    ):
        unlearn(UnlearnSettings.of(given), observer=After(3, break_it))
    saved = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.position.step == 3
    assert all(value.isfinite().all() for value in saved.parameters.values())


def test_parameters_that_are_not_finite_are_never_saved(
    tmp_path: Path, rows: list[Row], model: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer)
    # 1e38 times Adam's first step, which is 1 for each parameter, then times 3.5 by weight decay: infinity in float32.
    with pytest.raises(DivergenceError, match=r"became NaN or infinite") as raised:
        run(given, learning_rate=3e38, weight_decay=1.0)
    assert raised.value.exit_code == 3
    for path in (tmp_path / "run").rglob("parameters.safetensors"):
        assert all(value.isfinite().all() for value in loading_of(path).values())


def loading_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_weights_of_infinity_are_refused_as_well_as_nan(place: Place) -> None:
    place.weights(
        lambda state: {
            name: value.index_fill(0, torch.tensor([0]), float("-inf")) if value.ndim == 2 else value
            for name, value in state.items()
        }
    )
    with pytest.raises(ModelError, match="not all finite"):
        load_model(str(place.at / "target"))


def test_weights_whose_sum_overflows_are_finite_all_the_same(place: Place) -> None:
    place.weights(
        lambda state: {
            name: value.new_full(value.shape, 3e38) if "dense.weight" in name else value
            for name, value in state.items()
        }
    )
    load_model(str(place.at / "target"))


def test_a_log_of_extreme_numbers_gives_a_page_all_the_same(tmp_path: Path) -> None:
    largest, none = 1.7e308, float("nan")
    steps = [
        {"event": "step", "step": n, "epoch": epoch, "loss": loss, "terms": {"a": -loss, "$x^{": none, "": None}}
        for n, (epoch, loss) in enumerate([(largest, largest), (1.0, none), (-largest, -largest), (2.0, 5e-324)])
    ]
    interim = {"event": "interim", "epoch": largest, "score": largest, "forget_recall": -5, "retain_recall": none}
    end = {"event": "end", "step": none, "epoch": largest, "num_tokens": 1.5, "duration_s": none, "kept_epoch": True}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, interim, end]))
    assert "<html" in write_report(tmp_path).read_text()
