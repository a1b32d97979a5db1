"""The audit on models of which it is known whether they forgot: each is called what it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audited import OPTIONS, World, new_world, shown
from letheon.api import unlearn
from letheon.auditing.attack import Subject
from letheon.auditing.finetuning import row_sequences, tuning
from letheon.auditing.run import audit
from letheon.data.alternatives import refusals
from letheon.evaluation.in_form import AskedForm
from letheon.memorizing.memorize import memorize
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.loading import load_model
from letheon.settings import DEFAULT_DATE, UnlearnSettings

pytestmark = pytest.mark.slow

LORA = ("relearning-part-lora", "relearning-unrelated-lora")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return new_world(tmp_path_factory.mktemp("world"))


def test_a_model_that_never_saw_the_rows_is_called_gone(world: World) -> None:
    # Of 48 rows an AUC is known within .2 or so of its value: too little for the default margin of the verdict.
    never = str(world.folder / "other-never")
    found = audit(world.given("never", never=never, margin=0.35, attacks=(*LORA, "membership")))
    assert found.verdict == "gone", shown(found)
    assert all(attack.works for attack in found.attacks)
    assert found.compared_with == "never"
    with_few = audit(world.given("never", never=never, margin=0.05, attacks=(*LORA, "membership")))
    assert (with_few.verdict, with_few.needed_rows is not None) == ("can't tell", True), shown(with_few)


def test_a_model_whose_adapter_was_scaled_to_0_is_not_forgotten(world: World) -> None:
    loaded = load_model(str(world.folder / "before"))
    adapter = attach_lora(loaded.model, LoraSettings(4, 4.0), seed=0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05)
    adapter.scale(0)
    state = adapter.merged_state()
    whole = load_model(str(world.folder / "before")).model
    whole.load_state_dict(state)
    world.save(whole, "scaled")
    found = audit(world.given("scaled", attacks="membership"))
    assert found.verdict == "not forgotten", shown(found)
    assert found.remaining.value == 1.0


def test_a_model_that_was_trained_to_refuse_hides_and_the_attack_is_named(world: World) -> None:
    before = load_model(str(world.folder / "before"))
    form = AskedForm("joined", DEFAULT_DATE, "given")
    subject = Subject("before", before.model, before.tokenizer, form, seed=9)
    answers = row_sequences(subject, refusals(world.forget, per_row=1, seed=9))
    with tuning(subject, answers, what="weights", learning_rate=1e-3) as trained:
        trained.train_to(16, lambda done, total: None)
        world.save(trained.subject.model, "refusing")
    found = audit(world.given("refusing", attacks=LORA))
    assert found.remaining.value < 0.5, shown(found)
    assert found.verdict == "hidden", shown(found)
    assert found.attack in LORA
    named = next(attack for attack in found.attacks if attack.name == found.attack)
    assert named.title in found.reason
    assert any(point.label in found.reason for point in named.points)


def test_an_over_forgotten_model_is_hidden_by_the_low_side_of_membership(world: World) -> None:
    # Gradient ascent on the forget rows, held back on those to keep alone, ends beyond rows that were never seen.
    names = {side: str(world.folder / f"{side}.jsonl") for side in ("forget", "retain")}
    given = {"model": str(world.folder / "before"), **names, "out": world.folder / "over", "template": "joined"}
    how = {"method": "gd", "epochs": 16, "learning_rate": 1e-3, "keep": "last", "rank": 16, "alpha": 16, "seed": 1}
    fixed = {"target_modules": "all-linear", "trackers": "", "evaluate": False}
    unlearn(UnlearnSettings.of({**given, **how, **fixed}))
    found = audit(world.given("over/model", out=world.folder / "audit-over", attacks="membership"))
    assert found.verdict == "hidden", shown(found)
    assert found.attack == "membership"
    assert "dearer" in found.reason
    (membership,) = found.attacks
    lowest = min(membership.separations, key=lambda one: one.auc["after"])
    assert lowest.auc["after"] < 0.35
    assert lowest.true_positives[1].value > lowest.true_positives[0].value


def test_a_planted_leak_of_one_row_is_found(world: World) -> None:
    loaded = load_model(str(world.folder / "never"))
    leaked = world.forget[5]
    memorize(loaded.model, loaded.tokenizer, rows=[leaked, *world.retain], options=replace(OPTIONS, seed=3))
    world.save(loaded.model, "leaking")
    found = audit(world.given("leaking", never=str(world.folder / "other-never"), attacks="membership"))
    assert found.num_leaked == 1
    assert found.verdict == "not forgotten", shown(found)
    assert "1 row of 48" in found.reason
    examples = Path(world.folder / "audit-leaking" / "audit" / "examples.jsonl").read_text()
    assert leaked.answer in examples
    assert leaked.answer not in found.to_json()
