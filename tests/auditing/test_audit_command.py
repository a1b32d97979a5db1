"""The audit as a command and as a function: settings, files, errors, resuming, budget, purge, report."""

import json
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from audited import World, made_rows, new_world
from letheon import AuditSettings, Row
from letheon.api import audit
from letheon.auditing import registry
from letheon.auditing.attack import (
    HIDING,
    HIDING_UNTIL_ROUNDED,
    Attack,
    Given,
    Knowledge,
    Point,
    Separated,
    Separation,
    Subject,
)
from letheon.auditing.inputs import read_audited, settings_of_run
from letheon.cli.main import cli
from letheon.data.rows import write_rows
from letheon.errors import DataError, EvaluationError, LetheonError, ModelError, SettingsError
from letheon.model.architectures import train_tokenizer
from letheon.model.loading import save_model
from letheon.purging.purge import purge
from letheon.report.audit import masked
from letheon.scores.audits import CONTROLS, read_audit
from running import run, short_run
from small import tiny_model


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six rows a side, and a model that knows those to forget and those to keep."""
    return new_world(tmp_path_factory.mktemp("world"), num=6, models=("before",))


@pytest.fixture
def given(tmp_path: Path, world: World) -> dict[str, Any]:
    """An audit of a model that knows nothing against one that knows the rows."""
    save_model(tiny_model("olmo", world.tokenizer), world.tokenizer, tmp_path / "after")
    for name in ("forget", "retain"):
        shutil.copy(world.folder / f"{name}.jsonl", tmp_path)
    names = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    models = {"model": str(tmp_path / "after"), "before": str(world.folder / "before")}
    return {**models, **names, "out": tmp_path / "out", "template": "joined", "max_new_tokens": 16}


def echo(gain: float, calls: list[str] | None = None) -> Attack:
    """An attack that finds what it is told, at two strengths."""

    def attack(subject: Subject, rows: object, tell: object) -> Knowledge:
        if calls is not None:
            calls.append(subject.name)
        assert isinstance(rows, tuple)
        texts = tuple(row.answer for row in rows)
        return Knowledge(
            tuple(range(len(rows))),
            (Point(1, (0.0,) * len(rows)), Point(2, (gain,) * len(rows), texts=texts)),
        )

    return Attack("echo", "Echo", "no paper", "steps", attack)


@pytest.fixture
def with_echo(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(registry, "attacks", lambda: {"echo": echo(0.0, calls)})
    return calls


def test_an_audit_leaves_results_outcomes_and_examples_for_whom_the_table_says(
    given: dict[str, Any], with_echo: list[str]
) -> None:
    found = audit(AuditSettings.of(given))
    folder = given["out"] / "audit"
    assert sorted(path.name for path in folder.iterdir()) == [
        "examples.jsonl",
        "outcomes.json",
        "report.html",
        "results.json",
    ]
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in ("examples.jsonl", "outcomes.json")} == {0o600}
    assert read_audit(folder / "results.json") == found
    plain = json.loads((folder / "results.json").read_text())
    assert (plain["verdict"], plain["reason"]) == (found.verdict, found.reason)
    assert {score["name"] for score in plain["scores"]} >= {"audit.remaining"}
    assert with_echo == ["after", "hiding", "after"]  # the last for placebo rows


def test_curves_have_shares_of_what_was_known_and_a_mean_height(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "attacks", lambda: {"echo": echo(0.5)})
    found = audit(AuditSettings.of(given))
    (attack,) = found.attacks
    assert [point.of_before for point in attack.points] == pytest.approx([0.0, 0.5 / found.known["before"]])
    last, height = attack.points[-1].recovery, attack.area_recovery
    assert last is not None
    assert height is not None
    # Of two points, where the first brings nothing back, half of the second.
    assert height.value == pytest.approx(((attack.points[0].recovery or last).value + last.value) / 2)


def test_an_attack_works_if_it_brings_rows_back_on_one_of_its_models_that_hide_them(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def rounding(subject: Subject, rows: Any, tell: object) -> Knowledge:
        asked.append(subject.name)
        gain = float(subject.name == HIDING_UNTIL_ROUNDED)
        return Knowledge(tuple(range(len(rows))), (Point(4, (gain,) * len(rows)),))

    attacks = {
        name: Attack(name, name, "no paper", "bits", rounding, hidden_in=hidden_in)
        for name, hidden_in in {"plain": (HIDING,), "both": (HIDING, HIDING_UNTIL_ROUNDED)}.items()
    }
    monkeypatch.setattr(registry, "attacks", lambda: attacks)
    found = {attack.name: attack for attack in audit(AuditSettings.of(given)).attacks}
    assert asked == ["after", HIDING, "after", "after", HIDING, HIDING_UNTIL_ROUNDED, "after"]
    assert (found["plain"].works, found["both"].works) == (False, True)
    assert {HIDING, HIDING_UNTIL_ROUNDED} <= CONTROLS.keys()


def test_an_audit_that_was_ended_goes_on_and_another_model_begins_anew(
    given: dict[str, Any], with_echo: list[str], world: World
) -> None:
    first = audit(AuditSettings.of(given))
    num = len(with_echo)
    again = audit(AuditSettings.of(given))
    assert len(with_echo) == num
    assert (again.known, again.verdict) == (first.known, first.verdict)
    save_model(tiny_model("olmo", world.tokenizer, seed=5), world.tokenizer, Path(given["model"]))
    audit(AuditSettings.of(given))
    assert with_echo[num:] == ["after", "after"]  # the model that hides comes of the model before, which is the same


def test_purge_removes_what_attacks_brought_back(given: dict[str, Any], with_echo: list[str]) -> None:
    audit(AuditSettings.of(given))
    folder = given["out"] / "audit"
    found = purge(given["out"], note=silent)
    assert {trace.path.name for trace in found.traces} == {"examples.jsonl", "outcomes.json", "report.html"}
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "results.json"]


def test_the_budget_leaves_out_what_would_take_longer(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Attack("slow", "Slow", "no paper", "steps", echo(0.0).run, passes=1e9)
    monkeypatch.setattr(registry, "attacks", lambda: {"echo": echo(0.0), "slow": slow})
    found = audit(AuditSettings.of({**given, "budget": "10m"}))
    assert [attack.name for attack in found.attacks] == ["echo"]
    assert "budget of 600 s" in found.left_out["slow"]


def test_the_command_ends_with_0_whatever_it_says_unless_it_is_told_to_fail(
    given: dict[str, Any],
    with_echo: list[str],
) -> None:
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = CliRunner().invoke(cli, ["audit", *flags], standalone_mode=False)
    assert done.exception is None, done.output
    assert (done.return_value or 0) == 0
    verdict = read_audit(given["out"] / "audit" / "results.json").verdict
    assert f"{verdict}:" in done.output
    names = {"hidden": "hidden", "not forgotten": "not-forgotten", "can't tell": "unclear"}
    failing = CliRunner().invoke(cli, ["audit", *flags, "--fail-on", names[verdict]])
    assert failing.exit_code == 1


def test_the_plan_names_attacks_and_what_they_lack_without_weights(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("letheon.auditing.controls.load_model", fail)
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = CliRunner().invoke(cli, ["audit", *flags, "--plan"])
    assert done.exit_code == 0, done.output
    assert "relearning-part-lora" in done.output
    assert "membership: made-up rows differ" in done.output
    assert "a model made to hide the rows, one made to hide them until its weights are rounded\n" in done.output
    assert "documents: 6, too few for the verdict gone, which takes at least 60 with a margin of 0.05" in done.output
    assert not given["out"].exists()
    without = CliRunner().invoke(cli, ["audit", *flags, "--attacks", "prompts", "--plan"])
    assert "a model made to hide the rows\n" in without.output


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"fail_on": "gone"}, SettingsError, "expected some of hidden, not-forgotten, unclear, got 'gone'"),
        ({"attacks": "relearnin"}, SettingsError, "did you mean"),
        ({"never": "x", "make_never": True}, SettingsError, "leave out one of them"),
        ({"full": True, "attacks": "membership"}, SettingsError, "full: has no effect where --attacks chooses"),
        ({"budget": "soon"}, SettingsError, "a length of time such as 10m"),
        ({"before": "/nowhere/at-all"}, ModelError, "/nowhere/at-all"),
    ],
)
def test_what_cannot_be_is_said_before_weights_are_loaded(
    given: dict[str, Any], changed: dict[str, Any], error: type[LetheonError], said: str
) -> None:
    with pytest.raises(error, match=said):
        read_audited(AuditSettings.of({**given, **changed}), note=silent)


@pytest.mark.parametrize(
    ("side", "advice"),
    [
        ("never", r"give a --never that was trained with the tokenizer of .*before$"),
        ("model", r"give the --before that --model was made from$"),
    ],
)
def test_models_of_other_vocabularies_are_refused(
    given: dict[str, Any], tmp_path: Path, side: str, advice: str
) -> None:
    other = train_tokenizer(["Quite another text, with other words."], vocab_size=300)
    save_model(tiny_model("olmo", other), other, tmp_path / "foreign")
    told = rf"foreign: expected the vocabulary of .*before \(\d+ tokens\).*got another one \({len(other)} tokens\); "
    with pytest.raises(ModelError, match=told + advice):
        read_audited(AuditSettings.of({**given, side: str(tmp_path / "foreign")}), note=silent)


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_rows_that_a_model_saw_are_no_placebo(given: dict[str, Any], world: World, side: str, tmp_path: Path) -> None:
    seen = {"forget": world.forget, "retain": world.retain}[side]
    write_rows([*made_rows("holdout", 5, seed=2), seen[1]], tmp_path / "holdout.jsonl")
    settings = AuditSettings.of({**given, "holdout": str(tmp_path / "holdout.jsonl")})
    told = rf"holdout.jsonl, line 6 .*expected a row that no model saw, but .*{side}.jsonl, line 2 .*out of --holdout"
    with pytest.raises(DataError, match=told):
        read_audited(settings, note=silent)


def test_too_few_rows_are_refused(given: dict[str, Any], world: World) -> None:
    write_rows(world.forget[:2], Path(given["forget"]))
    with pytest.raises(DataError, match="expected at least 4 rows, since fewer give no interval, got 2; give more"):
        read_audited(AuditSettings.of(given), note=silent)


def test_rows_of_fewer_documents_than_an_interval_takes_are_said_to_be(
    given: dict[str, Any], with_echo: list[str], world: World
) -> None:
    one = [replace(row, id=f"one#{number}") for number, row in enumerate(world.forget)]
    write_rows(one, Path(given["forget"]))
    found = audit(AuditSettings.of(given))
    assert found.verdict == "can't tell"
    assert any("of 1 document, and an interval takes 4" in warning for warning in found.warnings)


def test_a_model_given_as_never_knew_that_knows_is_said_to_and_compared_with_nowhere(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(subject: Subject, seen: Any, unseen: Any, tell: object) -> dict[str, Separated]:
        knows = subject.name in ("before", "after", "never")
        return {"loss": Separated((float(knows),) * len(seen), (0.5 * knows,) * len(unseen))}

    attacks = {"echo": echo(0.9), "told": Separation("told", "Told", "no paper", judge)}
    monkeypatch.setattr(registry, "attacks", lambda: attacks)
    found = audit(AuditSettings.of({**given, "never": given["before"]}))
    assert found.compared_with == "placebo"
    (told_of,) = [warning for warning in found.warnings if "given as never-knew knows the forget rows" in warning]
    assert re.search(r"it gives 1\.00 of them, and the unlearned model gives 0\.\d\d of placebo rows", told_of)
    assert told_of.endswith("give one by --never that was trained without them")
    # The AUC of 1 is compared with 1/2, not with that of a model that knows the rows; made-up rows differ anyway.
    told = next(attack for attack in found.attacks if attack.name == "told")
    assert (told.separations[0].shift.value, told.counts) == (0.5, False)


def test_a_command_without_run_or_model_says_what_it_takes() -> None:
    done = CliRunner().invoke(cli, ["audit"])
    assert isinstance(done.exception, SettingsError)
    assert "expected the folder of a run, or models and rows by --model" in str(done.exception)


@pytest.mark.slow
def test_a_never_knew_model_is_made_of_the_rows_to_keep_and_used_again(
    given: dict[str, Any], with_echo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audit(AuditSettings.of({**given, "make_never": True}))
    never = given["out"] / "audit" / "never"
    assert found.controls["never"] == str(never)
    assert found.known["never"] < 0.5 < found.known["before"]
    assert "never" in with_echo

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr("letheon.auditing.run.make_never", fail)
    audit(AuditSettings.of({**given, "make_never": True}))


def test_where_no_attack_can_run_each_reason_is_told_once(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs(_: Given) -> str:
        return "there is no text"

    attacks = {name: Attack(name, name, "no paper", "steps", echo(0.0).run, needs=needs) for name in ("one", "other")}
    monkeypatch.setattr(registry, "attacks", lambda: attacks)
    with pytest.raises(EvaluationError, match=r"no attack could be run \(one, other: there is no text\)"):
        audit(AuditSettings.of(given))


def test_an_attack_whose_training_breaks_down_at_once_says_nothing(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Attack("echo", "Echo", "no paper", "steps", lambda subject, rows, tell: Knowledge((0, 1), (), ("broke",)))
    monkeypatch.setattr(registry, "attacks", lambda: {"echo": broken})
    found = audit(AuditSettings.of(given))
    assert found.verdict == "can't tell"
    assert found.attacks[0].notes == ("broke",)


def test_rows_that_no_model_knew_cannot_be_forgotten(given: dict[str, Any], with_echo: list[str]) -> None:
    found = audit(AuditSettings.of({**given, "before": given["model"]}))
    assert found.verdict == "can't tell"
    assert "there is nothing to forget" in found.reason
    assert "no better than the control (0.00 more, where 1 is all of them)" in found.reason
    # Nothing is attacked, and no model that hides the rows is made.
    assert found.attacks == ()
    assert (with_echo, list(found.left_out)) == ([], ["echo"])
    assert {*found.left_out.values(), found.missing[HIDING]} == {"the model before does not know the rows"}
    assert list(found.controls) == ["before", "after"]


@pytest.fixture
def finished(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """A finished run with six forget rows."""
    values = {**short_run(tmp_path, rows, model, tokenizer), "epochs": 1}
    write_rows(made_rows("forget", 6, seed=0), tmp_path / "forget.jsonl")
    run(values)
    return values


def test_the_audit_of_a_run_takes_its_settings_and_opens_its_report(
    finished: dict[str, Any],
    with_echo: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})
    folder = finished["out"]
    settings = settings_of_run(folder, {})
    assert (settings.model, settings.before) == (str(folder / "model"), finished["model"])
    assert (settings.template, settings.out) == ("joined", folder)
    found = audit(folder, max_new_tokens=12)
    page = (folder / "report.html").read_text()
    assert page.index('id="audit"') < page.index('id="scores"')
    assert found.reason.partition("'")[0] in page
    assert "This audit is of another model" not in page
    assert any(f"{folder / 'adapter'} is kept" in warning for warning in found.warnings)
    assert {trace.path.name for trace in purge(folder, note=silent).traces} >= {"outcomes.json", "examples.jsonl"}


def test_a_run_without_its_original_or_its_result_is_refused(finished: dict[str, Any]) -> None:
    folder = finished["out"]
    Path(finished["model"]).rename(folder.parent / "elsewhere")
    with pytest.raises(EvaluationError, match=r"model before unlearning, .*target, is not there any more.*--before"):
        settings_of_run(folder, {})
    assert settings_of_run(folder, {"before": str(folder.parent / "elsewhere")}).before.endswith("elsewhere")
    with pytest.raises(EvaluationError, match="expected the folder of a run"):
        settings_of_run(folder.parent, {})


def test_masked_text_shows_that_words_were_there() -> None:
    assert masked("555-0134 is it") == "55▇▇▇▇▇▇ is it"


def test_needs_are_asked_of_what_was_given() -> None:
    assert echo(0.0).needs(Given()) is None
