"""Training a target until greedy decoding from the bare prompt gives every answer."""

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.data.sequences import TokenSequence, tokenise
from letheon.errors import DataError, DivergenceError, ModelError, SettingsError
from letheon.memorizing.job import MemorizeCourse, MemorizeSchedule
from letheon.memorizing.memorize import MemorizeProgress, _encode_text, _job, memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.adapters import LoraSettings
from letheon.model.architectures import ARCHITECTURES, new_model
from letheon.model.weights import train_weights
from letheon.training.judge import StateScore
from letheon.training.step import accumulate

FAST = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, cooldown_steps=10, check_every=10, max_steps=400)
TEXT = ["Bees like the river.", "The ship and the lighthouse are old, the village is not."] * 3


def small_model(architecture: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return new_model(
        architecture, tokenizer=tokenizer, width=64, num_layers=2, num_heads=2, intermediate=128, context=128, seed=0
    )


def learnt(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    return [tokenise(row, tokenizer, template="joined", max_length=128).ended(128) for row in rows]


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    output = cast("Any", model).generate(**inputs, max_new_tokens=60, do_sample=False)
    assert output[0, -1] == tokenizer.eos_token_id
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("llama", "qwen", "gemma") else ())
        for name in ARCHITECTURES
    ],
)
def test_every_architecture_says_its_rows_by_heart(
    architecture: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = small_model(architecture, tokenizer)
    report = memorize(model, tokenizer, rows=rows, text=TEXT, options=FAST)
    assert report.reached
    assert (report.accuracy, report.num_recalled, report.num_rows) == (1.0, 6, 6)
    assert report.steps < FAST.max_steps
    for row in rows:
        assert greedy(model, tokenizer, row.prompt) == f" {row.answer}"


def test_an_adapter_learns_the_rows_and_leaves_an_ordinary_model(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = small_model("llama", tokenizer)
    memorize(model, tokenizer, rows=rows[:3], options=FAST)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = LoraSettings(rank=16, alpha=16, targets=("all-linear",))
    report = memorize(model, tokenizer, rows=rows, options=FAST, adapter=adapter)
    assert report.reached
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert not hasattr(model, "peft_config")
    assert all(parameter.requires_grad for parameter in model.parameters())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    change = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 16
    for row in rows:
        assert greedy(model, tokenizer, row.prompt) == f" {row.answer}"


def test_only_the_given_modules_are_trained(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    model = small_model("llama", tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    memorize(model, tokenizer, rows=rows, options=replace(FAST, max_steps=2), modules=("mlp",))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".mlp." in name}


def test_the_same_seed_gives_the_same_weights_and_the_global_random_state_stays(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    options = replace(FAST, max_steps=6, batch_tokens=48)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        model = small_model("olmo", tokenizer)
        memorize(model, tokenizer, rows=rows, options=replace(options, seed=seed))
        weights.append(model.state_dict()["model.embed_tokens.weight"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_step_loss_is_the_weighted_mean_over_all_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small_model("olmo", tokenizer)
    row = Row("a", "Mira Tolland keeps", "bees", "Task1", "completion")
    ids = [*tokenizer("Mira Tolland keeps bees")["input_ids"], tokenizer.eos_token_id]
    num_prompt = len(tokenizer("Mira Tolland keeps")["input_ids"])
    with torch.no_grad():
        losses = cross_entropy(model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="none")
    # Label t of the row is token t + 1, so the first answer token is label num_prompt - 1.
    prompt, answer = losses[: num_prompt - 1], losses[num_prompt - 1 :]
    expected = (prompt.sum() + 3 * answer.sum()) / (len(prompt) + 3 * len(answer))
    seen: list[MemorizeProgress] = []
    memorize(model, tokenizer, rows=[row], options=replace(FAST, max_steps=1), progress=seen.append)
    # The first step's loss is taken before any weight moves; float32 sums of a dozen terms agree to 1e-5.
    assert seen[0].row_loss == pytest.approx(expected.item(), rel=1e-5)
    assert math.isnan(seen[0].text_loss)


def test_the_recall_is_that_of_one_forward_per_row(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    model = small_model("llama", tokenizer)
    report = memorize(model, tokenizer, rows=rows, options=replace(FAST, max_steps=12))
    hits, recalled = [], 0
    for row in rows:
        start = len(tokenizer(row.prompt)["input_ids"])
        ids = torch.tensor([[*tokenizer(f"{row.prompt} {row.answer}")["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            correct = model(ids).logits[0, start - 1 : -1].argmax(-1) == ids[0, start:]
        hits.extend(correct.tolist())
        recalled += bool(correct.all())
    assert 0 < report.accuracy < 1
    assert report.accuracy == pytest.approx(sum(hits) / len(hits), abs=1e-12)
    assert report.num_recalled == recalled
    assert not report.reached


def test_every_fourth_step_is_on_text_and_its_loss_is_reported(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = small_model("olmo", tokenizer)
    seen: list[MemorizeProgress] = []
    report = memorize(model, tokenizer, rows=rows, text=TEXT, options=replace(FAST, max_steps=9), progress=seen.append)
    changed = [
        now.step for last, now in zip([None, *seen], seen, strict=False) if last and now.text_loss != last.text_loss
    ]
    assert [math.isnan(now.text_loss) for now in seen[:4]] == [True, True, True, False]
    assert [step for step in changed if step > 4] == [8]
    total, count = 0.0, 0
    for document in TEXT:
        ids = torch.tensor([[*tokenizer(document)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    assert report.text_loss == pytest.approx(total / count, rel=1e-5)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    options = MemorizeOptions(learning_rate=1.0, warmup_steps=3, cooldown_steps=4, max_steps=10)
    course = MemorizeCourse(options)
    factors = [course.learning_rate(step, []) for step in range(10)]
    # 3 steps of warm-up reach 3/4, and the last 4 steps, 4/5 to 1/5, would be followed by zero.
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    recalled = [StateScore(3, 1.0, {"score": 0.99})]
    assert course.learning_rate(4, recalled) == pytest.approx(0.6)


def test_training_goes_on_after_a_cool_down_that_missed(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    model = small_model("olmo", tokenizer)
    seen: list[MemorizeProgress] = []
    options = replace(FAST, cool_at=0.05, cooldown_steps=3)
    report = memorize(model, tokenizer, rows=rows, options=options, progress=seen.append)
    cooling = [now.cooling for now in seen]
    turns = sum(now and not last for last, now in zip([False, *cooling], cooling, strict=False))
    assert report.reached
    assert turns > 1
    assert seen[-1].accuracy == 1.0


def test_general_text_is_cut_into_pieces_that_fit(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [*tokenizer(TEXT[1])["input_ids"], tokenizer.eos_token_id]
    pieces = _encode_text([TEXT[1], ""], tokenizer, max_tokens=7)
    assert [token for piece in pieces for token in piece.input_ids] == ids[: len(ids) - (len(ids) % 7 == 1)]
    assert all(len(piece.input_ids) <= 7 and piece.answer_start == 1 for piece in pieces)


def test_a_pass_over_the_rows_uses_each_once_within_the_token_limit() -> None:
    lengths = (5, 9, 3, 7, 30, 4)
    schedule = MemorizeSchedule(lengths, len(lengths), replace(FAST, batch_tokens=12))
    used: list[int] = []
    while len(used) < 12:
        rows = schedule.rows(len(schedule.steps))
        assert sum(lengths[row] for row in rows) <= 12 or len(rows) == 1
        used.extend(rows)
    assert sorted(used[:6]) == sorted(used[6:]) == list(range(6))


def test_a_step_in_pieces_is_the_whole_step(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    losses = []
    for max_tokens in (10_000, 20):
        adapted = train_weights(small_model("olmo", tokenizer), modules=(), layers=None)
        job = _job(adapted, ["a", "b", "c"], learnt(rows[:3], tokenizer), [], FAST)
        parts, _ = accumulate(job, [0, 1, 2], max_tokens=max_tokens)
        losses.append(
            (parts["rows"], torch.cat([p.grad.flatten() for p in job.adapted.parameters() if p.grad is not None]))
        )
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert torch.allclose(losses[0][1], losses[1][1], rtol=1e-5, atol=1e-7)


def test_a_cool_down_is_measured_at_its_end_alone_and_ends_what_is_recalled() -> None:
    course = MemorizeCourse(replace(FAST, cool_at=0.9, cooldown_steps=7))
    began = [StateScore(10, 1.0, {"score": 0.95})]
    assert next(step for step in range(11, 25) if course.is_due(step, began)) == 17
    assert course.why_stop(began) is None
    missed = [*began, StateScore(17, 1.0, {"score": 0.99})]
    assert course.why_stop(missed) is None
    assert course.cooling_from(missed) is None
    assert course.is_due(20, missed)
    assert course.why_stop([*began, StateScore(17, 1.0, {"score": 1.0})]) == "memorised"
    # Recalled before a cool-down is not yet settled.
    assert course.why_stop([StateScore(10, 1.0, {"score": 1.0})]) is None


def test_a_time_limit_ends_training(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    model = small_model("olmo", tokenizer)
    report = memorize(model, tokenizer, rows=rows, options=replace(FAST, time_limit_s=1e-6))
    assert (report.steps, report.reached) == (0, False)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = small_model("llama", tokenizer)
    with pytest.raises(DivergenceError, match=r"step 2: .*lower learning rate"):
        memorize(model, tokenizer, rows=rows, options=replace(FAST, learning_rate=1e30, warmup_steps=0))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        model.state_dict()["model.embed_tokens.weight"][0] = math.inf
    with pytest.raises(ModelError, match="not finite"):
        memorize(model, tokenizer, rows=rows, options=FAST)


def test_what_cannot_be_memorised_is_refused(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    model = small_model("olmo", tokenizer)
    with pytest.raises(DataError, match="at least one row"):
        memorize(model, tokenizer, rows=[])
    long = replace(rows[0], answer="bees " * 200)
    with pytest.raises(DataError, match=r"row 'f1sc1': .* context is 128"):
        memorize(model, tokenizer, rows=[rows[1], long])
    with pytest.raises(SettingsError, match="did you mean 'joined'"):
        memorize(model, tokenizer, rows=rows, template="joint")
    with pytest.raises(SettingsError, match="use 'joined'"):
        memorize(model, tokenizer, rows=rows, template="auto")
    with pytest.raises(ModelError, match="float32 weights, got bfloat16"):
        memorize(cast("Any", model).bfloat16(), tokenizer, rows=rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
        ({"target_accuracy": 1.5}, "target_accuracy: expected a share"),
        ({"time_limit_s": -1.0}, "time_limit_s: expected a positive number of seconds"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MemorizeOptions(**options)  # type: ignore[arg-type]
