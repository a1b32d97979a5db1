"""Attention over variable lengths against each sequence by itself, with a stand-in for the GPU's kernel on a CPU."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from architecture_table import ARCHITECTURES, CASES, WINDOW, random_model
from letheon import Row
from letheon.data.packing import PackedBatch, pack
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.engine import attention, paths
from letheon.engine.attention import kernels_for
from letheon.engine.engine import Engine, padded_logits
from letheon.engine.head import project
from letheon.engine.paths import build_engine

PACKED = [name for name, case in CASES.items() if case.path == "packed"]
WITHOUT = {"gemma-2": "a cap, sinks or dropout", "gpt-oss": "a cap, sinks or dropout"}
"""What wants more than the kernel can, and why."""


def documented(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What `torch.nn.attention.varlen.varlen_attn` is documented to give, one sequence after another, from scores."""
    assert cu_seq_q is cu_seq_k
    assert cu_seq_q.dtype == torch.int32
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    pieces = []
    for start, end in pairwise(cu_seq_q.tolist()):
        assert end - start <= max_q == max_k
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        ahead = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        left, right = window_size
        visible = (ahead <= right) & ((left < 0) | (ahead >= -left))
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        pieces.append((scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces)


@pytest.fixture
def batches(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[PackedBatch]:
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    chosen = (tuple(range(6)), (5, 1, 2))
    return [pack([sequences[i] for i in c], is_forget=[i < 3 for i in c], row_index=c) for c in chosen]


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", documented)
    monkeypatch.setattr(paths, "kernels_for", lambda _: ("varlen", "sequences"))


def values(engine: Engine, batch: PackedBatch) -> list[Tensor]:
    """Log-probabilities of the answers and their gradients in all weights that have one."""
    weights = list(engine.model.parameters())
    with engine.running():
        found = engine.label_values(batch).log_probs
        gradients = torch.autograd.grad(found.square().sum(), weights, allow_unused=True)
    return [found.detach(), *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_sees_the_tokens_and_is_seen_by_none(
    name: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row], batches: list[PackedBatch]
) -> None:
    model, pad, length = random_model(CASES[name].config(len(tokenizer))), 7, 41
    plain = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    whole = [s.input_ids[:length] for s in plain]
    padded = [
        TokenSequence((*ids, *[pad] * (length - len(ids))), answer_start=1, padding=length - len(ids)) for ids in whole
    ]
    batch = pack([*padded, plain[1]], is_forget=[False] * 7, row_index=range(7))
    engine = build_engine(model, batches[0], adapter_off=nullcontext)
    assert engine.path == CASES[name].path
    with torch.no_grad():
        if engine.path == "logits":
            found = padded_logits(model, batch)
        else:
            with engine.running():
                found = project(engine.states(batch), engine.head)
        # The model's own attention over the padded rows and their mask, at every place.
        ids = torch.tensor([s.input_ids for s in padded])
        mask = torch.tensor([[t < len(ids) for t in range(length)] for ids in whole]).long()
        expected = model(ids, attention_mask=mask, use_cache=False).logits.float().flatten(0, 1)
    assert {len(s) for s in whole} > {length}  # one row has no padding at all
    found, compared = found[: 6 * length], torch.ones(6 * length, dtype=torch.bool)
    if name == "gemma-2":
        # Its own attention mixes all keys, masked ones too, where a place is further than a window from every token.
        compared = torch.tensor([t - len(ids) < WINDOW - 1 for ids in whole for t in range(length)])
    torch.testing.assert_close(found[compared], expected[compared], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("_stand_in")
def test_padded_sequences_attend_by_themselves_whatever_the_kernel(
    tokenizer: PreTrainedTokenizerBase, batches: list[PackedBatch]
) -> None:
    at_once = build_engine(random_model(CASES["olmo"].config(len(tokenizer))), batches[0], adapter_off=nullcontext)
    assert at_once.attention == "varlen"
    padded = pack(
        [TokenSequence((5, 6, 7, 1, 1), 1, padding=2), TokenSequence((8, 9), 1)],
        is_forget=[False] * 2,
        row_index=(0, 1),
    )
    by_itself = replace(at_once, attention="sequences")
    for found, expected in zip(values(at_once, padded), values(by_itself, padded), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("name", PACKED)
def test_all_sequences_at_once_are_each_by_itself(
    name: str, tokenizer: PreTrainedTokenizerBase, batches: list[PackedBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(CASES[name].config(len(tokenizer)))
    probe, batch = batches
    at_once = build_engine(model, probe, adapter_off=nullcontext)
    monkeypatch.setattr(paths, "kernels_for", kernels_for)
    by_itself = build_engine(model, probe, adapter_off=nullcontext)
    assert by_itself.attention == "sequences"
    if name in WITHOUT:
        assert at_once.attention == "sequences"
        assert "attention over variable lengths fails" in at_once.notes[0]
        assert WITHOUT[name] in at_once.notes[0]
    else:
        assert (at_once.attention, at_once.notes) == ("varlen", by_itself.notes)
    for found, expected in zip(values(at_once, batch), values(by_itself, batch), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_kernel_that_lets_sequences_see_each_other_is_not_used(
    tokenizer: PreTrainedTokenizerBase, batches: list[PackedBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, *_: object, **given: object) -> Tensor:
        ends = torch.tensor([0, int(offsets[-1])], dtype=torch.int32)
        return documented(query, key, value, ends, ends, int(ends[1]), int(ends[1]), **given)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "varlen_attn", blind)
    monkeypatch.setattr(paths, "kernels_for", lambda _: ("varlen", "sequences"))
    engine = build_engine(random_model(CASES["olmo"].config(len(tokenizer))), batches[0], adapter_off=nullcontext)
    assert (engine.path, engine.attention) == ("packed", "sequences")
    assert "attention over variable lengths carries state over" in engine.notes[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in PACKED if name not in WITHOUT])
def test_the_gpus_kernel_agrees(name: str, tokenizer: PreTrainedTokenizerBase, batches: list[PackedBatch]) -> None:
    model = random_model(CASES[name].config(len(tokenizer)))
    torch.nn.Module.to(model, "cuda", torch.bfloat16)
    probe, batch = (each.to(model.device) for each in batches)
    engine = build_engine(model, probe, adapter_off=nullcontext)
    assert engine.attention == "varlen", engine.notes
    plain = Engine(model, "packed", adapter_off=nullcontext, frozen_head=None)
    for found, expected in zip(values(engine, batch), values(plain, batch), strict=True):
        assert torch.allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_a_cpu_and_float32_attend_by_sequence(tokenizer: PreTrainedTokenizerBase) -> None:
    model = random_model(CASES["olmo"].config(len(tokenizer)))
    assert kernels_for(model) == ("sequences",)
