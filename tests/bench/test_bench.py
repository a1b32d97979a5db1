"""The benchmark's plain step is ours on whole batches; its shapes, rows and floors are what they say."""

from datetime import date

import pytest
import torch
from bench.__main__ import Done, Job, across, jobs_for, report, run_all
from bench.case import (
    Result,
    adapt,
    adapter_gradients_by_ours,
    adapter_gradients_by_plain,
    build_case,
    our_optimiser,
    our_step,
    padded,
)
from bench.forms import FAMILIES, whole_text
from bench.gate import GateError, check, compare
from bench.growth import Growth, Measured, exponent, table
from bench.machine import describe_machine, peak_bytes_of, spread, timed
from bench.plain import Weights, pad, plain_loss
from bench.rows import Workload, largest_step, smallest_steps, workload
from bench.shapes import SHAPES, Shape, make_model
from bench.step import alternate, floor_flops, result_of
from bench.step import table as step_table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chats import chatty
from letheon import Row
from letheon.data.sequences import TokenSequence, tokenise, tokenise_all
from letheon.model.adapters import LoraAdapter
from small import tiny_model

CPU = torch.device("cpu")
TINY = Shape("tiny", width=32, num_layers=2, num_heads=4, intermediate=64, vocab_size=400, is_tied=True, context=256)


def work_of(rows: list[Row], tokenizer: PreTrainedTokenizerBase, steps: list[list[int]]) -> Workload:
    return Workload(tokenise_all(rows, tokenizer, template="pair", max_length=200), 3, steps)


def moved(model: PreTrainedModel, *, seed: int = 2) -> LoraAdapter:
    """The model with the paper's adapter, moved away from the reference."""
    adapted = adapt(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


@pytest.mark.parametrize("step", [[0, 3, 1, 4], [5, 2], [0, 1, 2], [3, 4, 5], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_step_has_our_loss_and_gradients(
    step: list[int], dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = tiny_model("olmo", tokenizer)
    torch.nn.Module.to(model, dtype)
    adapted = moved(model)
    work = work_of(rows, tokenizer, [step])
    case = build_case(adapted, work)
    ours, plain = adapter_gradients_by_ours(case), adapter_gradients_by_plain(adapted, work)
    # The heads of both compute in float32 whatever the trunk's dtype; PEFT's adapters are float32.
    gate = compare(ours, plain, plain)
    assert gate.our_loss_error < 1e-5
    assert gate.our_gradient_error < 2e-5
    assert all(gradient.norm() > 1e-4 for gradient in plain[0].gradients)


def test_both_optimisers_take_the_same_steps(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    from bench.case import LEARNING_RATE, WEIGHTS
    from bench.plain import plain_step

    work = work_of(rows, tokenizer, [[0, 3], [1, 5], [2, 4]])
    ended = []
    for is_plain in (True, False):
        adapted = moved(tiny_model("olmo", tokenizer))
        case = build_case(adapted, work)
        plain = torch.optim.Adam(adapted.parameters(), lr=LEARNING_RATE)
        optimiser = our_optimiser(case)
        for step in work.steps:
            if is_plain:
                plain_step(adapted.peft, padded(work, step, CPU), optimiser=plain, weights=WEIGHTS)
            else:
                with case.problem.engine.running():
                    our_step(case, step, optimiser)
        ended.append(torch.cat([p.detach().flatten() for p in adapted.parameters()]))
    start = torch.cat([p.detach().flatten() for p in moved(tiny_model("olmo", tokenizer)).parameters()])
    assert (ended[0] - start).abs().max() > LEARNING_RATE
    # Adam divides by the gradient's size: where that is rounding alone, so is the step.
    assert (ended[0] - ended[1]).abs().median() < 1e-7


def test_plain_loss_by_hand() -> None:
    """Two rows of one answer token each; the model's two forwards give given logits over three tokens."""

    class Given(torch.nn.Module):
        """Says the same of every position; the adapter's logits at the second call."""

        def __init__(self) -> None:
            super().__init__()
            self.is_off = False

        def disable_adapter(self) -> "Given":
            return self

        def __enter__(self) -> None:
            self.is_off = True

        def __exit__(self, *_: object) -> None:
            self.is_off = False

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            chosen = [0.2, 0.3, 0.5] if self.is_off else [0.1, 0.6, 0.3]
            logits = torch.tensor(chosen).log().expand(*input_ids.shape, 3)
            return type("Output", (), {"logits": logits})

    batch = pad([TokenSequence((0, 1), 1), TokenSequence((0, 2, 2), 2)], [True, False])
    assert batch.is_answer.tolist() == [[True, False], [False, True]]
    # NPO of p = .6, q = .3, beta 1: 2 softplus(ln 2) = 2 ln 3; NLL = -ln .3;
    # KL = .2 ln 2 + .3 ln(1/2) + .5 ln(5/3).
    expected = 2 * 1.0986123 + 3 * 1.2039728 + 5 * (0.2 * 0.6931472 - 0.3 * 0.6931472 + 0.5 * 0.5108256)
    found = plain_loss(Given(), batch, Weights(beta=1.0, gamma=3.0, delta=5.0))  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_padding() -> None:
    batch = pad([TokenSequence((7, 8, 9), 1), TokenSequence((5, 6, 7, 8, 9), 3)], [True, False])
    assert batch.input_ids.tolist() == [[7, 8, 9, 0, 0], [5, 6, 7, 8, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.is_answer.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert batch.is_forget.tolist() == [[True], [False]]


@pytest.mark.parametrize("name", SHAPES)
def test_number_of_weights_is_the_models(name: str) -> None:
    model = make_model(SHAPES[name], dtype=torch.float32, device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) == SHAPES[name].num_weights


def test_published_sizes() -> None:
    assert SHAPES["1b"].num_weights == 1_279_787_008
    assert SHAPES["7b"].num_weights == 6_888_095_744
    assert SHAPES["6m"].num_weights == 6_291_456
    assert SHAPES["smollm2"].num_weights == 134_515_008


def test_weights_are_made_in_the_wanted_dtype() -> None:
    first, second = (make_model(TINY, dtype=torch.bfloat16, device=CPU) for _ in range(2))
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_floor_by_hand() -> None:
    shape = Shape("hand", width=10, num_layers=2, num_heads=1, intermediate=40, vocab_size=100, is_tied=True)
    assert shape.num_trunk_weights == 2 * (400 + 1200)
    # 7 tokens, 3 of them answers: trunk 4 * 3200 * 7 and 2 * 3200 * 7 / 20, head 4 * 1000 * 3 and 2 * 1000 * 3 / 20.
    flops = floor_flops(shape, 7, 3)
    assert flops.trunk == pytest.approx(89_600 + 2_240)
    assert flops.head == pytest.approx(12_000 + 300)
    assert flops.seconds(trunk_rate=1000, head_rate=500) == pytest.approx(91.84 + 24.6)
    # The plain step: three times 2 * (3200 + 1000) on each of 10 padded tokens.
    assert shape.plain_flops(10).total == pytest.approx(252_000)


def test_workload_keeps_batches_as_drawn() -> None:
    work = workload(TINY, None, num_steps=5, batch_size=4)
    assert [len(step) for step in work.steps] == [4] * 5
    assert sorted(row for step in work.steps for row in step) == list(range(20))
    assert 0 < work.num_forget < 20
    assert sum(work.is_forget) == work.num_forget
    more = workload(TINY, None, num_steps=6, batch_size=4)
    for step, same in zip(work.steps, more.steps, strict=False):
        assert [work.sequences[row] for row in step] == [more.sequences[row] for row in same]
        assert [work.is_forget[row] for row in step] == [more.is_forget[row] for row in same]


def test_rows_can_be_limited() -> None:
    work = workload(TINY, None, num_steps=100, batch_size=4, num_rows=10)
    assert len(work.sequences) == 10
    assert work.num_forget == 5
    assert [len(step) for step in work.steps] == [4, 4, 2]


def test_largest_step_is_the_largest() -> None:
    work = largest_step(TINY, None, batch_size=4)
    (rows,) = work.steps
    # Made-up rows have at most 223 tokens, and some step holds one.
    assert work.num_padded(rows) == 4 * 223
    assert work.num_tokens(rows) <= 4 * 223


def test_counts_of_a_step() -> None:
    work = Workload([TokenSequence((1, 2, 3), 1), TokenSequence((1, 2, 3, 4, 5), 4)], 1, [[0, 1]])
    assert (work.num_tokens([0, 1]), work.num_padded([0, 1]), work.num_answers([0, 1])) == (8, 10, 3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.slow
def test_a_whole_measurement(precision: str) -> None:
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    adapted = adapt(make_model(TINY, dtype=dtype, device=CPU))
    start = {name: value.clone() for name, value in adapted.trained().items()}
    work = workload(TINY, None, num_steps=2, batch_size=2)
    gate = check(adapted, smallest_steps(TINY, None, num_steps=4), precision)  # type: ignore[arg-type]
    assert gate.is_passed
    assert adapted.model.dtype == dtype
    assert all(torch.equal(value, start[name]) for name, value in adapted.trained().items())
    case = build_case(adapted, work)
    result = result_of(case, TINY, gate, precision=precision, pairs=2, warmup=0)  # type: ignore[arg-type]
    assert result.plain.num == result.ours.num == 2
    assert 0 < result.floor_s < result.ours.high
    assert result.our_tokens_per_s / result.plain_tokens_per_s == pytest.approx(result.throughput_ratio)
    assert "tiny" in str(step_table([result]).rows)


def result(*gradients: list[float], loss: float = 1.0) -> Result:
    return Result(loss, [torch.tensor(gradient) for gradient in gradients])


def test_a_gradient_that_is_off_stops_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = [result([1.0, 1.0], [1.0, 1.0, 1.0])]
    assert compare(exact, exact, exact).is_passed
    gate = compare([result([1.0, 1.0], [1.0, 1.0, 1.001])], exact, exact)
    assert gate.our_gradient_error == pytest.approx(1e-3 / 3**0.5, rel=1e-3)
    assert not gate.is_passed
    assert not compare([result([1.0, 1.0], [1.0, 1.0, 1.0], loss=1.0001)], exact, exact).is_passed
    adapted = adapt(make_model(TINY, dtype=torch.float32, device=CPU))
    work = smallest_steps(TINY, None, num_steps=1)
    zeros = Result(0.0, [torch.zeros(p.shape) for p in adapted.parameters()])
    monkeypatch.setattr("bench.gate.adapter_gradients_by_ours", lambda _: [zeros])
    with pytest.raises(GateError, match="nothing is timed"):
        check(adapted, work, "float32")


def test_in_bfloat16_ours_may_be_no_less_exact_than_plain() -> None:
    exact = [result([1.0, 0.0]), result([0.0, 1.0])]
    plain = [result([1.0, 0.03]), result([0.04, 1.0])]
    nearer = [result([1.0, 0.04]), result([0.03, 1.0])]
    gate = compare(nearer, plain, exact)
    assert gate.our_gradient_error == gate.plain_gradient_error == pytest.approx(0.05 / 2**0.5)
    assert gate.is_passed
    assert not compare([result([1.0, 0.05]), result([0.05, 1.0])], plain, exact).is_passed


def test_gate_takes_small_steps_of_both_roles() -> None:
    gate, all_of_them = smallest_steps(TINY, None, num_steps=4), workload(TINY, None, num_steps=1000, batch_size=4)
    for rows in gate.steps:
        assert {row < gate.num_forget for row in rows} == {True, False}
    largest = max(map(gate.num_padded, gate.steps))
    assert sum(all_of_them.num_padded(rows) < largest for rows in all_of_them.steps) < 50


def test_pairs_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    work = workload(TINY, None, num_steps=3, batch_size=2)
    case = build_case(adapt(make_model(TINY, dtype=torch.float32, device=CPU)), work)
    monkeypatch.setattr("bench.step.plain_step", lambda *_, **__: order.append("plain"))
    monkeypatch.setattr("bench.step.our_step", lambda *_: order.append("ours"))
    pairs = alternate(case, pairs=3, warmup=1)
    assert order == ["plain", "ours", "ours", "plain", "plain", "ours", "ours", "plain"]
    assert [pair.rows for pair in pairs] == [work.steps[number % 3] for number in (1, 2, 3)]


def test_spread_by_hand() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.median, found.low, found.high, found.num) == (3.0, 2.0, 4.0, 5)
    assert spread([7.0]).low == spread([7.0]).high == 7.0


def test_exponent_by_hand() -> None:
    sizes = (1, 2, 4, 8)
    assert exponent(sizes, [5.0, 5.0, 3.0 * 4**2, 3.0 * 8**2]) == pytest.approx(2.0)
    assert exponent(sizes, [1.0] * 4) == pytest.approx(0.0)


def test_peak_is_what_a_function_holds() -> None:
    size = 50 * 2**20
    found = peak_bytes_of(lambda: torch.zeros(size, dtype=torch.uint8), CPU)
    if found is None:
        pytest.skip("the system does not tell")
    assert abs(found - size) < 5 * 2**20  # pages of others come and go
    assert timed(lambda: 3, CPU)[1] == 3


def test_reports() -> None:
    def job(precision: str, *, ours: float, plain: float) -> Done:
        found = {
            "shape": "1b", "precision": precision, "threads": 1, "batch_size": 4,
            "mean_tokens": 100.0, "our_tokens_per_s": ours, "plain_tokens_per_s": plain,
            "throughput_ratio": ours / plain, "floor_share": 0.5,
        }  # fmt: skip
        return Done(Job(precision, "bench.step"), "| a |\n", {"step": found})

    done = [job("float32", ours=60, plain=10), job("bfloat16", ours=150, plain=30), Done(Job("x", "m"), "failed", {})]
    assert [row[4:6] for row in across(done).rows] == [("6.00", "6.00"), ("15.00", "5.00")]
    machine = describe_machine(CPU)
    text = report(done, machine)
    assert f"torch {machine['packages']['torch']}" in text
    assert text.count("| a |") == 2

    point = Measured(value=8, duration_s=0.5, peak_bytes=None, store_bytes_per_row=1024.0)
    shown = table(Growth("rows", "rows", "linear", (point,), 1.0, None))
    assert shown.rows == ((8, "500.0", None, "1.0"),)


@pytest.mark.slow
def test_a_job_that_fails_or_has_no_time_is_said_so() -> None:
    (failed,) = run_all([Job("no such flag", "json.tool", ("--no-such-flag",))], None)
    assert failed.found == {"not_measured": "exit status 2"}
    (without,) = run_all([Job("needs rows", "bench.evaluation", needs_data=True)], None)
    assert without.markdown == "not measured: it needs --data\n"
    (late,) = run_all([Job("its imports alone take longer", "bench.peak")], None, budget_s=0.0)
    assert late.markdown == "not measured: no time left\n"


def test_suites_suit_the_machine() -> None:
    quick, full, gpu = jobs_for(CPU, full=False), jobs_for(CPU, full=True), jobs_for(torch.device("cuda"), full=False)
    assert not any("1b" in job.arguments for job in quick)
    assert any("1b" in job.arguments for job in full)
    assert all("7b" in job.arguments or "1b" in job.arguments for job in gpu)
    titles = [job.title for job in full]
    assert len(set(titles)) == len(titles)


def test_parts_of_the_step_add_up(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    from bench.breakdown import PARTS, split

    work = work_of(rows, tokenizer, [[0, 3, 1, 4]])
    case = build_case(moved(tiny_model("olmo", tokenizer)), work)
    optimiser = our_optimiser(case)
    with case.problem.engine.running():
        found = split(lambda: our_step(case, [0, 3, 1, 4], optimiser), CPU)
    assert {str(row[0]) for row in found.rows} == {*PARTS.values(), "the rest"}
    assert sum(float(str(row[2]).rstrip("%")) for row in found.rows) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.chat])
def test_checkpoints_of_the_forms_know_what_runs_train_on(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    family, row = FAMILIES[name], Row("a", "Who keeps bees?", "Mira Tolland", "t", "question")
    made = chatty(tokenizer, str(family.chat))
    made.add_special_tokens({"additional_special_tokens": list(family.special)})
    today = date.today().isoformat()  # what transformers tells a template that asks for the date
    sequence = tokenise(row, made, template="chat", max_length=200, date=today)
    whole = made(whole_text(family, made, row), add_special_tokens=False).input_ids
    assert list(sequence.input_ids) == whole[: len(sequence.input_ids)]
    end = str(made.decode(list(sequence.end))).strip()
    assert end == (family.end or "<|endoftext|>")
