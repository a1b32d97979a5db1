"""The recipes, and what `letheon methods` and docs/methods.md say of methods and recipes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli import methods_page as methods_text
from letheon.data.rows import Row, write_rows
from letheon.errors import SettingsError
from letheon.model.loading import save_model
from letheon.objective.catalogue import METHODS, get_method
from letheon.recipes import read_recipe, recipe_names, recipe_text
from letheon.settings import UnlearnSettings
from letheon.unlearning.resolve import resolve_settings
from letheon.unlearning.run import unlearn

ROOT = Path(__file__).parents[2]
REQUIRED = {"model": "m", "forget": "f", "retain": "r", "out": "o"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "atyaephyra-7b": {"rank": 5, "alpha": 5.0, "beta": 0.5, "gamma": 1.0, "delta": 0.5, "npo": "token", "epochs": 20},
    "atyaephyra-1b": {
        "learning_rate": 1e-4,
        "batch_size": 4,
        "optimiser": "adam",
        "target_modules": ("q_proj", "v_proj"),
    },
    "neko-1b": {
        "schedule": "paired",
        "adapt": "weights",
        "delta": 1.0,
        "positions": "answer",
        "retain_batch_size": None,
        "optimiser": "adamw",
        "weight_decay": 0.01,
        "patience": 4,
        "patience_on": "retain_kl",
        "checkpoint_steps": 100,
    },
    "npo-tofu": {"beta": 0.1, "npo": "sequence", "schedule": "forget"},
    "simnpo-forget10": {"beta": 4.5, "gamma": 1.0, "epochs": 10, "batch_size": 32, "max_gradient_norm": None},
    "llmu-yao": {"optimiser": "adamw", "weight_decay": 0.01, "batch_size": 2, "max_gradient_norm": None},
    "ce-u-tofu": {
        "batch_size": 32,
        "learning_rate": 1e-5,
        "epochs": 10,
        "weight_decay": 0.01,
        "warm_up": 1.0,
        "max_gradient_norm": 1.0,
    },
    "pdu-tofu": {"batch_size": 128, "weight_decay": 0.01, "retain_batch_size": None},
    "alt-po-tofu": {"batch_size": 35, "epochs": 10, "warm_up": 1.0, "max_gradient_norm": 1.0},
    "rmu-zephyr-7b": {"batch_size": 4, "schedule": "paired", "adapt": "weights", "learning_rate_schedule": "constant"},
    "undial-7b": {
        "beta": 10.0,
        "learning_rate": 1e-4,
        "schedule": "forget",
        "adapt": "lora",
        "batch_size": 32,
        "lora_init": "kaiming",
        "target_modules": ("q_proj", "v_proj"),
    },
    "sugd-7b": {"schedule": "chunked", "chunk_size": 32, "retain_ratio": 7, "adapt": "weights", "layers": "-8:"},
    "agad-7b": {
        "schedule": "annealed",
        "chunk_size": 64,
        "retain_share": 0.25,
        "gamma": 1.0,
        "lora_init": "kaiming",
        "max_gradient_norm": 1.0,
    },
    "zjuklab-7b": {
        "beta": 0.1,
        "batch_size": 4,
        "learning_rate": 1e-4,
        "keep": "last",
        "lora_init": "kaiming",
        "overlong": "truncate-prompt",
        "coefficients": {"density": 0.8},
    },
    "sha256-7b": {"schedule": "mixed", "adapt": "weights", "target_modules": ("mlp",), "layers": "0:6"},
}
"""What the comments of some recipes say that they have, by way of defaults that might change."""


def resolved(values: Mapping[str, Any]) -> UnlearnSettings:
    return resolve_settings(UnlearnSettings.of({**REQUIRED, **values}))


def shown(name: str, *, width: int = 100) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(methods_text.describe(name))
    return capture.get()


def flat(name: str) -> str:
    """The page on one line, wherever it was wrapped."""
    return " ".join(shown(name).split())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_resolves_and_holds_differences_only(name: str) -> None:
    values = read_recipe(name)
    full = resolved(values)
    assert full.method in METHODS
    for setting in values.keys() - {"method"}:
        without = {key: value for key, value in values.items() if key != setting}
        try:
            is_idle = resolved(without) == full
        except SettingsError:
            is_idle = False  # another of the recipe's settings has an effect only with it
        assert not is_idle, f"{setting} is what it would be anyway"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_its_paper(name: str) -> None:
    text = recipe_text(name)
    papers = re.findall(r"arXiv \d{4}\.\d{5}|ACL Anthology \d{4}\.semeval-1\.\d+", text.note)
    assert papers
    assert "#" not in text.settings
    assert "method:" in text.settings


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_where_its_values_were_read(name: str) -> None:
    source = recipe_text(name).source
    assert (
        re.search(r"[\w-]+/[\w-]+, .*commit [0-9a-f]{7}\b", source)
        or "no code was found" in source
        or ("could not be found again" in source)
    )
    assert "source" not in read_recipe(name)
    assert f"Source: {source}" in flat(name)
    assert f"source: {source}" in flat(read_recipe(name)["method"])
    page = " ".join((ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split())
    assert f"Source: {source}." in page


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_what_its_comment_leaves_to_the_defaults(name: str) -> None:
    settings = resolved(read_recipe(name))
    assert {key: getattr(settings, key) for key in PUBLISHED[name]} == PUBLISHED[name]


FOR_A_SMALL_MODEL: dict[str, dict[str, Any]] = {
    "sha256-7b": {"template": "joined"},  # its tokenizer has no chat template
    "rmu-zephyr-7b": {"coefficients": {"layer": 1}},
    "adaptive-rmu-7b": {"coefficients": {"layer": 1}},
}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs(name: str, tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    save_model(model, tokenizer, tmp_path / "target")
    rows = [Row(f"r{i}qa0", f"Which harbour has number {i}?", f"Veld {i}", "Task1", "question") for i in range(12)]
    write_rows(rows[:6], tmp_path / "forget.jsonl")
    write_rows(rows[6:], tmp_path / "retain.jsonl")
    given = {"model": str(tmp_path / "target"), "out": tmp_path / "run", "max_steps": 2, "trackers": ""}
    sets = {role: str(tmp_path / f"{role}.jsonl") for role in ("forget", "retain")}
    report = unlearn(UnlearnSettings.of({**read_recipe(name), **FOR_A_SMALL_MODEL.get(name, {}), **given, **sets}))
    assert report.reason == "finished"
    num_runs = len(get_method(read_recipe(name)["method"]).runs)
    assert report.num_steps == 2 * num_runs
    assert (report.model / "model.safetensors").exists()


def test_the_dual_steps_of_pdu_add_up_to_those_of_four_forwards() -> None:
    settings = resolved(read_recipe("pdu-tofu"))
    assert settings.batch_size == 4 * 8 * 4  # rows a forward on one GPU, GPUs, forwards
    assert settings.coefficients is not None
    assert settings.coefficients["dual_step"] == 4 * 5


def test_every_method_has_a_recipe_of_another_name() -> None:
    unpublished = {"quantile"}
    assert {read_recipe(name)["method"] for name in recipe_names()} == set(METHODS) - unpublished
    # `letheon methods NAME` takes either.
    assert not set(METHODS) & set(recipe_names())


def test_the_weights_of_sugd_are_those_of_a_mean_over_all_rows() -> None:
    # One forget row of weight -1 and seven retain rows of 0.5, averaged over all eight, times 8.
    settings = resolved(read_recipe("sugd-7b"))
    assert settings.batch_size == 1 + settings.retain_ratio
    assert settings.gamma == pytest.approx(settings.retain_ratio * 0.5)
    assert settings.max_gradient_norm == pytest.approx(settings.batch_size * 1.0)


def test_the_page_of_the_methods_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == methods_text.to_markdown(), "run: letheon methods --markdown > docs/methods.md"


def test_contributing_says_what_the_page_says_of_adding_a_method() -> None:
    assert methods_text.ADDING in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in text] == []


def test_a_method_is_shown_with_formula_settings_structure_needs_and_recipes() -> None:
    page = flat("simnpo")
    for part in (
        "softplus(beta * mean log p(forget) + margin)",
        "2410.07163",
        "--coefficients margin=X 0 added inside the sigmoid",
        "structure schedule mixed, adapt lora",
        "needs retain rows",
        "simnpo-forget05 beta 2.5, coefficients forget_weight 0.1375",
    ):
        assert part in page
    assert "token, sequence, batch, logits" in flat("npo")
    assert "2 runs from the same start: (forget_weight 0.4, delta 0.4, gamma 0.2), then" in flat("npo-ties")


def test_a_recipe_is_shown_with_its_source_and_settings() -> None:
    page = flat("neko-1b")
    assert "ACL Anthology 2025.semeval-1.64" in page
    assert "validation: 0.1 patience: 4 patience_on: retain_kl" in page
    assert "--recipe neko-1b" in page


@pytest.mark.parametrize("name", [*METHODS, *recipe_names()])
def test_pages_fit_a_narrow_screen(name: str) -> None:
    assert max(len(line.rstrip()) for line in shown(name, width=80).splitlines()) <= 80


READ_THE_REFERENCE = {"low-rank-npo", "npo", "idk-dpo", "alt-po", "npo-ties"}


@pytest.mark.parametrize("name", METHODS)
def test_needs_say_which_losses_read_the_reference(name: str) -> None:
    reads_it = "the reference's log-probabilities of the answers" in flat(name)
    assert reads_it is (name in READ_THE_REFERENCE)


def test_needs_name_logits_states_and_other_answers() -> None:
    assert "the reference's logits" in flat("undial")
    assert "hidden states of one layer" in flat("adaptive-rmu")
    assert "random tokens in place of the forget answers" in flat("stat")
    assert "full-vocabulary KL" in flat("kl-min")
    assert "needs forget rows only" in flat("ga")


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"got 'simpno' \(did you mean 'simnpo'\?\)"):
        methods_text.describe("simpno")
    with pytest.raises(SettingsError, match=r"did you mean 'rmu-zephyr-7b'"):
        methods_text.describe("rmu-zephyr")


def test_methods_declare_what_a_reader_needs() -> None:
    for name in METHODS:
        method = get_method(name)
        assert method.formula
        assert re.search(r"arXiv \d{4}\.\d{5}|ACL Anthology 20\d\d\.", method.paper), name
        assert all(coefficient.meaning for coefficient in method.coefficients.values()), name
