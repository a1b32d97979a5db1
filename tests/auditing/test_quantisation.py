"""Rounding to 8 and 4 bits: codes, blocks, which matrices, and rows that come back."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.auditing.attack import Subject
from letheon.auditing.knowledge import knowledge
from letheon.auditing.quantisation import (
    BITS,
    BLOCK,
    CODEBOOKS,
    FP4,
    NF4,
    Kind,
    attack,
    code_intervals,
    intervals_of,
    matrices_of,
    quantised,
    round_to_channels,
    round_to_codes,
    rounded,
)
from letheon.data.sequences import tokenise_all
from letheon.evaluation.in_form import AskedForm
from running import knowing_model
from small import tiny_model


def silent(stage: str, done: int, total: int) -> None:
    pass


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Subject:
    return Subject("after", model, tokenizer, AskedForm("joined", "2024-07-26", "test"), max_new_tokens=40)


def block_of(*values: float) -> Tensor:
    return torch.tensor([[*values, *([0.0] * (BLOCK - len(values)))]])


def test_channels_are_rounded_to_127_steps_of_their_own() -> None:
    weight = torch.tensor([[12.7, -6.36, 0.04, 0.06], [1.27, 0.004, -0.006, 0.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[12.7, -6.4, 0.0, 0.1], [1.27, 0.0, -0.01, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(round_to_channels(weight), expected)


def test_codebooks_rise_from_minus_one_to_one() -> None:
    for codes in CODEBOOKS.values():
        assert list(codes) == sorted(set(codes))
        assert (codes[0], codes[-1], 0.0 in codes) == (-1.0, 1.0, True)
    assert (len(NF4), len(FP4)) == (16, 15)
    assert [round(12 * value, 4) for value in FP4[7:]] == [0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]


def test_nf4_takes_the_nearest_code_of_the_block() -> None:
    # Scale 2: 0.5 is .25, between .2461 and .3379; -1.5 is -.75, nearest to -.6962; 0.05 is .025, nearest to 0.
    expected = block_of(2.0, 2 * 0.24611230194568634, -2 * 0.6961928009986877, 0.0)
    torch.testing.assert_close(round_to_codes(block_of(2.0, 0.5, -1.5, 0.05), NF4), expected)


def test_fp4_takes_the_nearest_code_of_the_block() -> None:
    # Scale 12: 5.1 is nearest to 6, 4.9 to 4, -0.9 to 0.0625, 0.03 to 0; 7 is halfway between 6 and 8.
    expected = block_of(12.0, 6.0, 4.0, -0.0625, 0.0, 6.0)
    torch.testing.assert_close(round_to_codes(block_of(12.0, 5.1, 4.9, -0.9, 0.03, 7.0), FP4), expected)


def test_blocks_follow_each_other_over_rows_and_the_last_may_be_short() -> None:
    weight = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    flat = weight.flatten()
    naive = []
    for start in range(0, 150, 64):
        block = flat[start : start + 64]
        scale = block.abs().max()
        naive += [scale * min(NF4, key=lambda code: abs(code - float(value / scale))) for value in block]
    torch.testing.assert_close(round_to_codes(weight, NF4), torch.stack(naive).view(5, 30))


def test_the_values_of_a_code_reach_halfway_to_its_neighbours() -> None:
    # The scale, 2, stays. 0.5 is of code .2461, whose neighbours are .1609 and .3379; 0 of code 0, whose neighbours are
    # -.0911 and .0796. 2% of either interval is left at its ends.
    low, high = code_intervals(block_of(2.0, 0.5, 0.0), NF4)
    assert (float(low[0, 0]), float(high[0, 0])) == (2.0, 2.0)
    ends = [(0.16093020 + 0.24611230, 0.24611230 + 0.33791524), (-0.09105004, 0.07958030)]
    for place, (least, greatest) in enumerate(ends, 1):
        room = 0.02 * (greatest - least)
        assert float(low[0, place]) == pytest.approx(least + room, abs=1e-6)
        assert float(high[0, place]) == pytest.approx(greatest - room, abs=1e-6)


@pytest.mark.parametrize("codes", CODEBOOKS.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whatever_moves_within_its_interval_is_rounded_to_the_same_value(
    codes: Sequence[float], dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 50, generator=draw).to(dtype)  # the last block is short
    weight[2] = 0
    low, high = code_intervals(weight, codes)
    assert ((low <= weight) & (weight <= high)).all()
    assert (high - low).mean() > 0.1
    for share in (torch.zeros(5, 50), torch.ones(5, 50), torch.rand(5, 50, generator=draw)):
        moved = (low + share * (high - low)).to(dtype)
        assert torch.equal(round_to_codes(moved, codes), round_to_codes(weight, codes))


@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
def test_intervals_lie_as_their_matrix_does(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(architecture, tokenizer)
    matrices = matrices_of(model)
    with quantised(model, "nf4"):
        before = [matrix.parameter.detach().clone() for matrix in matrices]
    for matrix in matrices:
        _, high = intervals_of(matrix)
        matrix.parameter.data = high.contiguous()
    with quantised(model, "nf4"):
        assert all(torch.equal(matrix.parameter, own) for matrix, own in zip(matrices, before, strict=True))


@pytest.mark.parametrize("kind", BITS)
def test_rounding_twice_is_rounding_once_and_keeps_dtype_and_zeros(kind: Kind) -> None:
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    weight[2] = 0
    once = rounded(weight, kind)
    assert once.dtype == torch.bfloat16
    assert not torch.equal(once, weight)
    assert not rounded(torch.zeros(3, 70), kind).any()
    wide = rounded(weight.float(), kind)
    torch.testing.assert_close(rounded(wide, kind), wide)


def test_four_bits_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(2))
    for kind, codes in CODEBOOKS.items():
        stored, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type=kind)
        torch.testing.assert_close(round_to_codes(weight, codes), functional.dequantize_4bit(stored, state))


@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
def test_matrices_are_the_linear_layers_without_head_and_embedding(
    architecture: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(architecture, tokenizer)
    chosen = {id(matrix.parameter) for matrix in matrices_of(model)}
    names = {name.split(".")[-2] for name, value in model.named_parameters() if id(value) in chosen}
    assert (
        names
        == {
            "olmo": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            "gpt2": {"c_attn", "c_proj", "c_fc"},
        }[architecture]
    )
    assert len(chosen) == {"olmo": 14, "gpt2": 8}[architecture]


def test_experts_whose_matrices_lie_across_are_rounded_by_channel_too(tokenizer: PreTrainedTokenizerBase) -> None:
    model = random_model(CASES["gpt-oss"].config(len(tokenizer)))
    expert = next(matrix.parameter for matrix in matrices_of(model) if matrix.parameter.ndim == 3)
    own = expert.detach().clone()
    with quantised(model, "int8"):
        torch.testing.assert_close(expert.detach(), torch.stack([round_to_channels(one.T).T for one in own]))
    assert torch.equal(expert, own)


@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
def test_outputs_are_rounded_by_channel_whatever_way_a_matrix_lies(
    architecture: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(architecture, tokenizer)
    matrix = matrices_of(model)[0]
    own = matrix.parameter.detach().clone()
    outputs_first = own.T if architecture == "gpt2" else own
    with quantised(model, "int8"):
        found = matrix.parameter.detach().clone()
    torch.testing.assert_close(found.T if architecture == "gpt2" else found, round_to_channels(outputs_first))


def test_weights_are_put_back_after_an_error(model: PreTrainedModel) -> None:
    own = {name: value.clone() for name, value in model.state_dict().items()}

    def fail_when_quantised() -> None:
        with quantised(model, "nf4"):
            assert any(not torch.equal(value, own[name]) for name, value in model.state_dict().items())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_when_quantised()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def hide_within_a_bin(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, steps: int = 20
) -> None:
    """Move weights that lie on codes by less than half of the way to the next, so that the rows' loss rises."""
    found = [matrix.parameter for matrix in matrices_of(model)]
    on_codes = [weight.detach().clone() for weight in found]
    room = [_room(weight) for weight in on_codes]
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    for _ in range(steps):
        loss = torch.stack([_loss(model, torch.tensor(one.input_ids), one.answer_start) for one in sequences]).mean()
        gradients = torch.autograd.grad(loss, found)
        with torch.no_grad():
            for weight, gradient, start, most in zip(found, gradients, on_codes, room, strict=True):
                moved = weight + gradient.sign() * most / 5
                weight.copy_(torch.minimum(torch.maximum(moved, start - most), start + most))


def _loss(model: PreTrainedModel, ids: Tensor, start: int) -> Tensor:
    logits: Tensor = model(ids[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:])


def _room(weight: Tensor) -> Tensor:
    """0.03 of the scale of the block, less than half of the narrowest gap of nf4; none for the absmax itself."""
    blocks = weight.flatten().view(-1, BLOCK)
    scale = blocks.abs().amax(dim=-1, keepdim=True)
    return torch.where(blocks.abs() == scale, 0.0, 0.03 * scale).view(weight.shape)


def test_rows_that_tiny_changes_hide_come_back_in_four_bits(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = knowing_model(tokenizer, rows)
    with torch.no_grad():
        for matrix in matrices_of(model):
            matrix.parameter.copy_(rounded(matrix.parameter, "nf4"))
    subject = subject_of(model, tokenizer)
    known = knowledge(subject, rows[:3], silent)
    assert sum(known) > 2.0
    hide_within_a_bin(model, tokenizer, rows[:3])
    assert sum(knowledge(subject, rows[:3], silent)) < 0.5
    found = attack(subject, rows[:3], silent)
    assert [(point.strength, point.label) for point in found.points] == [(8.0, "int8"), (4.0, "nf4"), (4.0, "fp4")]
    assert sum(found.points[0].values) < 0.5
    assert found.points[1].values == known
    assert found.points[1].texts[1].strip() == rows[1].answer


def test_rows_that_a_model_never_knew_stay_unknown(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    found = attack(subject_of(model, tokenizer), rows[:3], silent)
    assert found.rows == (0, 1, 2)
    assert all(sum(point.values) < 0.2 for point in found.points)
