"""Each setting says what the rest of the code has to know of it."""

from pathlib import Path
from typing import Annotated, Literal

import pytest

from letheon.report.shareable import PLACES
from letheon.settings import (
    COEFFICIENT_FLAGS,
    OF_SCORING,
    DemoSettings,
    EvaluateSettings,
    MemorizeSettings,
    RescoreSettings,
    Settings,
    UnlearnSettings,
)
from letheon.settings.facts import (
    FILE,
    FIRST,
    FIXED,
    INCIDENTAL,
    OWN,
    RARE,
    RESUMABLE,
    SHARED,
    SIZED,
    Requires,
    RequiresMethod,
    facts_of,
    names_where,
)
from letheon.settings.parts import SuiteSettings

COMMANDS = [UnlearnSettings, EvaluateSettings, RescoreSettings, MemorizeSettings, DemoSettings]


def undecided(settings: type[Settings], *facts: str) -> list[str]:
    """The settings that leave one of these facts open."""
    return [name for name, found in facts_of(settings).items() if any(not getattr(found, fact) for fact in facts)]


@pytest.mark.parametrize("settings", COMMANDS)
def test_every_setting_has_a_heading(settings: type[Settings]) -> None:
    assert undecided(settings, "heading") == []


def test_every_setting_of_a_run_says_what_another_value_makes_of_it() -> None:
    assert undecided(UnlearnSettings, "change", "population") == []
    assert undecided(EvaluateSettings, "change") == []


def test_a_new_setting_without_facts_is_found() -> None:
    class Later(UnlearnSettings):
        decided: Annotated[int, FIXED, OWN] = 1
        half: Annotated[int, FIXED] = 1
        forgotten: int = 1

    assert undecided(Later, "change", "population") == ["half", "forgotten"]


def test_two_answers_to_one_question_are_refused() -> None:
    class Unclear(Settings):
        both: Annotated[int, OWN, SHARED] = 1

    with pytest.raises(TypeError, match="both: expected at most one Population"):
        facts_of(Unclear)


def test_what_may_change_when_a_run_is_resumed() -> None:
    incidental = names_where(UnlearnSettings, lambda facts: facts.change is INCIDENTAL)
    output = {"out", "resume", "cache_dir", "trackers", "checkpoint_minutes", "keep_checkpoints"}
    assert incidental == output | OF_SCORING | SuiteSettings.model_fields.keys()
    resumable = names_where(UnlearnSettings, lambda facts: facts.change is RESUMABLE)
    dial = {"dial", "dial_forget_budget", "dial_retain_budget", "dial_text_budget"}
    assert resumable == {"time_limit_s", "template", "gradient_checkpointing", "shard", *dial}
    assert names_where(EvaluateSettings, lambda facts: facts.change is INCIDENTAL) == {"out"}


def test_what_is_shared_fixes_model_rows_form_and_layers() -> None:
    facts = facts_of(UnlearnSettings)
    for name in ("model", "forget", "template", "max_length", "layers", "target_modules", "dora", "holdout", "dtype"):
        assert facts[name].population is SHARED, name
    for name in ("rank", "seed", "learning_rate", "beta", "patience"):
        assert facts[name].population is OWN, name
    for name in ("method", "npo", "batch_size", "schedule", "max_batch_tokens"):
        assert facts[name].population is SIZED, name


def test_places_are_paths_and_what_names_a_file() -> None:
    fields = UnlearnSettings.model_fields
    paths = {name for name, field in fields.items() if field.annotation in (Path, Path | None)}
    assert set(PLACES) == paths | names_where(UnlearnSettings, lambda facts: facts.kind is FILE)


def test_coefficients_are_those_of_the_flags() -> None:
    assert COEFFICIENT_FLAGS == ("beta", "gamma", "delta", "npo", "kl")


def test_no_setting_is_both_among_the_first_and_rare() -> None:
    first = names_where(UnlearnSettings, lambda facts: facts.shown is FIRST)
    assert {"model", "forget", "retain", "out", "method", "learning_rate"} <= first
    assert not first & names_where(UnlearnSettings, lambda facts: facts.shown is RARE)


class Made(Settings):
    """Settings that need one another."""

    kind: Literal["a", "b", "c"] = "a"
    file: str | None = None


def test_a_requirement_is_met_by_its_values_or_by_any() -> None:
    one_of, any_file = Requires("kind", "b", "c"), Requires("file")
    assert (str(one_of), str(any_file)) == ("--kind b or c", "--file")
    assert not one_of.is_met(Made())
    assert one_of.is_met(Made(kind="c"))
    assert not any_file.is_met(Made())
    assert any_file.is_met(Made(file="f"))


def test_requirements_name_settings_and_values_that_there_are() -> None:
    from letheon.objective.methods import Method
    from letheon.settings.validation import literal_values

    for facts in facts_of(UnlearnSettings).values():
        wanted = facts.requires
        if isinstance(wanted, RequiresMethod):
            assert wanted.attribute in Method.__dataclass_fields__
        elif wanted is not None:
            choices = literal_values(UnlearnSettings.model_fields[wanted.setting].annotation)
            assert set(wanted.values) <= set(choices)
