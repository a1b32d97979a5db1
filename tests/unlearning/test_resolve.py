"""From what the user set to what a run means: published values, refusals, and run.yaml as a --config."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row, Rows
from letheon.data.schedules import MixedSchedule, PairedSchedule
from letheon.errors import SettingsError
from letheon.model.loading import save_model
from letheon.objective.catalogue import METHODS, get_method
from letheon.recipes import recipe_settings
from letheon.settings import UnlearnSettings, read_config
from letheon.unlearning.reading import _choose_layer, read
from letheon.unlearning.resolve import (
    LEAST_EPOCHS,
    build_schedule,
    given_coefficients,
    notes_of_schedule,
    resolve_settings,
    terms_of,
)
from letheon.unlearning.run import unlearn
from letheon.unlearning.scoring_steps import check_score_at, is_to_score, steps_to_score
from running import model_of, run, same, short_run, unseen_for
from small import tiny_model


def settings_of(**given: Any) -> UnlearnSettings:
    return UnlearnSettings.of({"model": "m", "forget": "f.jsonl", "retain": "r.jsonl", "out": "o", **given})


def resolved(**given: Any) -> UnlearnSettings:
    return resolve_settings(settings_of(**given))


@pytest.mark.parametrize("method", list(METHODS))
def test_published_values_fill_what_is_not_given(method: str, tmp_path: Path) -> None:
    found, declared = resolved(method=method, **unseen_for(method, tmp_path)), METHODS[method]
    for name, value in declared.settings.items():
        assert getattr(found, name) == value
    for name, coefficient in declared.coefficients.items():
        assert given_coefficients(found)[name] == coefficient.default
    for flag in {"beta", "gamma", "delta", "npo", "kl"} - declared.coefficients.keys():
        assert getattr(found, flag) is None
    if declared.layer is None:
        assert terms_of(declared, found)


@pytest.mark.parametrize("method", list(METHODS))
def test_resolving_twice_changes_nothing_even_through_yaml(method: str, tmp_path: Path) -> None:
    once = resolved(method=method, seed=3, learning_rate=2e-5, **unseen_for(method, tmp_path))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(once.plain()))
    again = resolve_settings(UnlearnSettings.of(read_config(tmp_path / "run.yaml")))
    assert again == once
    assert again.plain() == once.plain()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "auto"),
        ({"method": "simnpo"}, "auto"),
        ({"general": "none"}, None),
        ({"general": "g.txt"}, "g.txt"),
        ({"learning_rate": 1e-3}, None),
        ({"method": "task-vector"}, None),
        ({"schedule": "chunked"}, None),
        ({"method": "quantile", "holdout": "h.jsonl"}, "holdout"),
        (recipe_settings("atyaephyra-7b"), None),
    ],
)
def test_a_run_that_finds_its_own_learning_rate_holds_what_the_model_writes(
    given: dict[str, Any], expected: str | None
) -> None:
    once = resolved(**given)
    assert once.general == expected
    assert resolve_settings(once).general == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "refusal"),
        ({"method": "simnpo"}, "refusal"),
        ({"method": "idk-dpo"}, None),  # which trains on refusals of its own
        ({"instead": "none"}, None),
        ({"instead": "auto"}, "auto"),
        ({"learning_rate": 1e-3}, None),
        ({"method": "task-vector"}, None),
        (recipe_settings("atyaephyra-7b"), None),
    ],
)
def test_a_run_that_finds_its_own_learning_rate_teaches_a_refusal(given: dict[str, Any], expected: str | None) -> None:
    once = resolved(**given)
    assert once.instead == expected
    assert resolve_settings(once).instead == expected


def test_what_is_given_is_kept() -> None:
    found = resolved(method="neko", schedule="mixed", adapt="lora", delta=0.25, coefficients={"forget_weight": 0.7})
    assert (found.schedule, found.adapt, found.delta) == ("mixed", "lora", 0.25)
    assert found.coefficients == {"forget_weight": 0.7}
    assert found.target_modules == ("all-linear",)


def test_a_coefficient_that_is_a_flag_can_be_given_either_way() -> None:
    assert resolved(method="npo", coefficients={"beta": 0.3}) == resolved(method="npo", beta=0.3)
    assert resolved(method="npo", beta=0.3, coefficients={"beta": 0.3}).beta == 0.3
    with pytest.raises(
        SettingsError, match=r"beta: expected one value, got 0\.5 from the flag and 0\.3 from the coefficients"
    ):
        resolved(method="npo", beta=0.5, coefficients={"beta": 0.3})


def test_module_names_of_a_method_hold_for_its_own_way_to_adapt() -> None:
    # "mlp" is a module of weights, but no layer that can carry an adapter.
    assert resolved(method="constrained").target_modules == ("mlp",)
    with_adapter = resolved(method="constrained", adapt="lora")
    assert with_adapter.target_modules == ("all-linear",)
    assert with_adapter.layers == "0:6"
    assert resolved(method="constrained", adapt="weights").target_modules == ("mlp",)
    assert resolved(method="constrained", target_modules="q_proj").target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "gd", "beta": 0.1}, "beta: method 'gd' does not take it (it takes gamma)"),
        ({"method": "ga", "gamma": 1.0}, "gamma: method 'ga' does not take it (it takes no coefficients)"),
        ({"method": "simnpo", "coefficients": {"margn": 1}}, "(did you mean 'margin'?)"),
        ({"method": "simnpo", "coefficients": {"margin": "wide"}}, "margin: expected a number, got 'wide'"),
        ({"method": "wga", "coefficients": {"gamma": -1}}, "gamma: expected a number of at least 0"),
        ({"method": "simnpo", "coefficients": {"forget_weight": "inf"}}, "forget_weight: expected a number"),
        ({"method": "simnpo", "coefficients": {"forget_weight": "nan"}}, "forget_weight: expected a number"),
        ({"method": "npo", "coefficients": {"npo": "tokn"}}, "npo: expected one of token, sequence, batch, logits"),
        ({"method": "npo", "coefficients": {"npo": "tokn"}}, "(did you mean 'token'?)"),
        ({"method": "sinmpo"}, "(did you mean 'simnpo'?)"),
        ({"method": "rmu", "coefficients": {"layer": "top"}}, "layer: expected a number, got 'top'"),
        ({"method": "gd", "gamma": 0.0, "schedule": "forget"}, None),
        ({"method": "simnpo", "gamma": 0.0, "coefficients": {"forget_weight": 0}}, "every term has weight 0"),
        # Settings that would be ignored
        ({"retain_batch_size": 4}, "retain_batch_size: has no effect without --schedule paired or alternating"),
        ({"method": "neko", "retain_batch_size": 4}, None),
        ({"chunk_size": 8}, "chunk_size: has no effect without --schedule chunked or annealed"),
        ({"method": "agad", "retain_ratio": 3}, "retain_ratio: has no effect without --schedule chunked"),
        ({"method": "sugd", "retain_share": 0.5}, "retain_share: has no effect without --schedule annealed"),
        ({"method": "neko", "rank": 9}, "rank: has no effect without --adapt lora"),
        ({"method": "neko", "lora_init": "kaiming"}, "lora_init: has no effect without --adapt lora"),
        (
            {"span": "text", "overlong": "truncate-prompt"},
            "overlong: 'truncate-prompt' cuts prompts, but --span text trains on them",
        ),
        ({"method": "neko", "alpha": 9}, "alpha: has no effect without --adapt lora"),
        ({"method": "neko", "rslora": True}, "rslora: has no effect without --adapt lora"),
        ({"method": "neko", "dora": True}, "dora: has no effect without --adapt lora"),
        ({"method": "neko", "adapt": "lora", "rank": 9}, None),
        ({"holdout_task": "Task1"}, "holdout_task: has no effect without --holdout"),
        ({"text_budget": 1.0}, "text_budget: has no effect without --holdout"),
        ({"patience_on": "retain_loss"}, "patience_on: has no effect without --patience"),
        ({"alternatives": "a.jsonl"}, "such as idk-dpo"),
        ({"method": "stat", "alternatives": "a.jsonl"}, None),
        ({"patience": 2, "patience_on": "membership"}, "patience_on: 'membership' is scored against unseen documents"),
        ({"patience": 2, "patience_on": "membership", "holdout": "d.jsonl"}, None),
        ({"epochs": 4, "score_at": "2,5"}, "score_at: expected epochs above 0 and at most 4"),
        ({"epochs": 4, "score_at": 0}, "score_at: expected epochs above 0"),
        ({"epochs": 4, "score_at": "0.5,4"}, None),
        ({"score_at": LEAST_EPOCHS}, None),  # of a run that finds its own end
        ({"score_at": LEAST_EPOCHS + 1}, "score_at: expected epochs above 0 and at most 60"),
        ({"score_at": 21, "learning_rate": 1e-3}, "score_at: expected epochs above 0 and at most 20"),
        ({"score_at": 21, "method": "task-vector"}, "score_at: expected epochs above 0 and at most "),
        # Methods that do something when training is over
        ({"method": "task-vector", "adapt": "weights"}, "use --adapt lora without --dora"),
        ({"method": "npo-ties", "dora": True}, "use --adapt lora without --dora"),
        ({"method": "npo-ties", "keep": "best"}, "use --keep last"),
        ({"method": "task-vector", "rslora": True}, None),
        ({"method": "npo-ties", "coefficients": {"density": 1.2}}, "density: expected a share above 0 and at most 1"),
        ({"method": "npo-ties", "coefficients": {"density": 0}}, "density: expected a share"),
        # Rows and places that a term needs
        ({"schedule": "forget"}, "schedule: 'forget' leaves out the retain rows"),
        ({"method": "stat", "schedule": "forget"}, "schedule: 'forget' leaves out the retain rows"),
        ({"method": "gd", "positions": "all"}, "has retain_nll; use --positions answer"),
        ({"method": "ga", "positions": "all"}, "has no retain term; use --positions answer"),
        ({"method": "kl-min", "kl": "gold", "positions": "all"}, "has retain_kl; use --positions answer"),
        ({"method": "low-rank-npo", "gamma": 0.0, "positions": "all"}, None),
        ({"method": "neko", "positions": "all"}, None),
    ],
)
def test_what_means_nothing_is_refused(given: dict[str, Any], message: str | None) -> None:
    if message is None:
        resolved(**given)
        return
    with pytest.raises(SettingsError, match=re.escape(message)):
        resolved(**given)


def rows_of(num: int, name: str) -> Rows:
    rows = tuple(Row(f"{name}{i}", "p", "a", "t", "question") for i in range(num))
    return Rows(name, rows, tuple(range(1, num + 1)))


def test_each_schedule_is_built_over_the_rows_it_takes() -> None:
    forget, retain = rows_of(5, "f"), rows_of(9, "r")

    def made(**given: Any) -> Any:
        return build_schedule(resolved(epochs=3, seed=2, **given), forget, retain)

    assert made(method="gd", batch_size=4) == MixedSchedule(14, 4, 2, 3)
    assert made(method="ga", batch_size=4) == MixedSchedule(5, 4, 2, 3)
    # With 23 retain rows to 5, or 4.6 to each, a run that finds its own learning rate has each forget row twice.
    many = rows_of(23, "r")
    for rate, schedule in (("auto", MixedSchedule(28, 4, 0, 3, 5, 2)), (1e-3, MixedSchedule(28, 4, 0, 3))):
        assert build_schedule(resolved(epochs=3, batch_size=4, learning_rate=rate), forget, many) == schedule
    assert notes_of_schedule(schedule) == []
    assert made(method="neko", batch_size=4) == PairedSchedule(5, 9, 4, 4, 2, 3)
    assert made(method="neko", batch_size=4, retain_batch_size=7) == PairedSchedule(5, 9, 4, 7, 2, 3)
    assert made(method="stat", batch_size=4) == PairedSchedule(5, 9, 4, 4, 2, 3, alternate=True)
    sugd = made(method="sugd", batch_size=8, chunk_size=2, retain_ratio=3)
    # Chunks of 2, 2 and 1 forget rows with 3 retain rows each: 8, 8 and 4 rows are a step, 3 times.
    assert [len(block) for block in sugd.blocks] == [3, 3, 3]
    agad = made(method="agad", batch_size=16, chunk_size=3)
    # A full chunk, a quarter of 9 retain rows, a smaller chunk, and all retain rows.
    assert [[len(step) for step in block] for block in agad.blocks] == [[3] * 3, [2] * 3, [2] * 3, [9] * 3]


@pytest.mark.parametrize(
    ("num_layers", "given", "layer", "span"),
    [
        (32, "auto", 7, "5:8"),  # the authors' layer of 32, and the three that they train
        (16, "auto", 4, "2:5"),
        (2, "auto", 1, "0:2"),
        (4, "auto", 2, "0:3"),
        (32, 20, 20, "18:21"),
        (32, "20", 20, "18:21"),
    ],
)
def test_the_layer_that_is_steered_and_those_that_are_trained(
    num_layers: int, given: float | str, layer: int, span: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config:
        num_hidden_layers = num_layers

        def get_text_config(self) -> "Config":
            return self

    monkeypatch.setattr("letheon.unlearning.reading.load_config", lambda *_, **__: Config())
    method = get_method("rmu")
    found = _choose_layer(resolved(method="rmu", coefficients={"layer": given}), method)
    assert found.coefficients is not None
    assert found.coefficients["layer"] == layer
    assert found.layers == span
    kept = _choose_layer(resolved(method="rmu", layers="0:1", coefficients={"layer": given}), method)
    assert kept.layers == "0:1"
    with pytest.raises(SettingsError, match=f"layer: expected a layer of the model, 0 to {num_layers - 1}, got 99"):
        _choose_layer(resolved(method="rmu", coefficients={"layer": 99}), method)
    with pytest.raises(SettingsError, match=r"layer: expected a layer of the model, 0 to \d+, got 0\.5"):
        _choose_layer(resolved(method="rmu", coefficients={"layer": 0.5}), method)


@pytest.mark.parametrize(
    "method",
    ["rmu", "sugd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("neko", "npo-ties", "stat", "simnpo"))],
)
def test_run_yaml_given_back_as_config_is_the_same_run(
    method: str, tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, tiny_model("olmo", tokenizer), tokenizer)
    first = run(given, method=method, epochs=1, template="auto", learning_rate=1e-3)
    kept = read_config(first.folder / "run.yaml")
    second = unlearn(UnlearnSettings.of({**kept, "out": tmp_path / "again"}))
    assert same(model_of(first), model_of(second))
    rewritten = read_config(second.folder / "run.yaml")
    assert rewritten == {**kept, "out": str(tmp_path / "again")}
    # And it can be resumed with either.
    unlearn(UnlearnSettings.of({**kept, "resume": True}))
    run(given, method=method, epochs=1, template="auto", learning_rate=1e-3, resume=True)


def test_a_model_of_fewer_layers_than_a_method_names(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    # SUGD trains the last eight layers, SHA256 the first six; here there are two.
    save_model(model, tokenizer, tmp_path / "target")
    given = short_run(tmp_path, rows, model, tokenizer)
    for method in ("sugd", "constrained"):
        assert run(given, method=method, epochs=1, out=tmp_path / method).reason == "finished"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 32}, []),
        (
            {"rank": 33, "target_modules": "q_proj,gate_proj"},
            [
                "WARNING: rank 33 is above 32, the smaller side of model.layers.0.self_attn.q_proj: the update has "
                "rank 32 at most, and the rest of the adapter costs memory and time without effect; use --rank 32 or "
                "less (scale --alpha with it to keep the factor)"
            ],
        ),
        ({"adapt": "weights", "layers": "-2:2"}, []),
        (
            {"layers": "1:9"},
            ["WARNING: layers: '1:9' goes beyond the model's 2 layers; the layers that exist are trained, '1:2'"],
        ),
        (
            {"adapt": "weights", "layers": "-3:"},
            ["WARNING: layers: '-3:' goes beyond the model's 2 layers; the layers that exist are trained, '0:2'"],
        ),
    ],
)
def test_what_is_larger_than_the_model_is_said_before_its_weights_are_loaded(
    settings: dict[str, Any],
    said: list[str],
    tmp_path: Path,
    rows: list[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    given = UnlearnSettings.of({**short_run(tmp_path, rows, model, tokenizer), **settings})
    notes: list[str] = []
    read(given, get_method(given.method), note=notes.append)
    assert [note for note in notes if note.startswith("WARNING")] == said


@pytest.mark.parametrize(
    ("epochs", "max_steps", "said"),
    [
        ((0.5, 2.0), None, None),
        ((0.25,), None, None),  # the first step
        ((1.5,), 6, None),
        ((1.75,), 6, r"^score_at: epoch 1.75 is over after step 7, but the run ends after step 6 \(--max-steps 6\)"),
        ((0.1, 1.0), None, r"^score_at: epoch 0.1 is less than half a step.* 4 steps; the first .* at epoch 0.25$"),
    ],
)
def test_epochs_to_score_at_are_steps_of_the_run(
    epochs: tuple[float, ...], max_steps: int | None, said: str | None
) -> None:
    check_epochs(said, epochs=2, score_at=epochs, max_steps=max_steps, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"score_at": (1, 2)}, None),
        ({"score_at": (1.5,), "checkpoint_steps": 2}, None),
        ({"score_at": (1.75,), "max_steps": 7}, None),  # the last step
        (
            {"score_at": (0.5, 1)},
            "^score_at: a run that finds its own learning rate is scored every 4 steps, of which ",
        ),
        ({"score_at": (1,), "checkpoint_steps": 3}, r"scored every 3 steps, of which epoch 1 \(step 4\) is none"),
    ],
)
def test_a_run_that_follows_its_scores_is_scored_at_even_distances(given: dict[str, Any], said: str | None) -> None:
    check_epochs(said, epochs=2, **given)


def check_epochs(said: str | None, **given: Any) -> None:
    """Four steps make an epoch, and two epochs the run."""
    settings, schedule = resolved(**given), MixedSchedule(8, 2, 0, 2)
    if said is None:
        check_score_at(settings, schedule)
        return
    with pytest.raises(SettingsError, match=said):
        check_score_at(settings, schedule)


@pytest.mark.parametrize(
    "given",
    [
        {"checkpoint_epochs": 2},
        {"checkpoint_steps": 3},
        {"checkpoint_steps": 3, "max_steps": 10},
        {"score_at": "0.5,2", "learning_rate": 1e-3},
        {"score_at": "3", "learning_rate": "auto", "checkpoint_epochs": 1},
    ],
)
def test_a_step_is_scored_after_if_it_is_among_those_that_are(given: dict[str, Any]) -> None:
    settings = settings_of(epochs=4, **given)
    schedule = MixedSchedule(16, 4, seed=0, epochs=4)
    listed = steps_to_score(settings, schedule)
    assert listed
    assert {step for step in range(40) if is_to_score(settings, schedule, step)} == listed
