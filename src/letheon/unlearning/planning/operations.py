"""Floating-point operations of a run: those of some of its rows, counted by torch and scaled to all that it reads.

Torch's own counter counts, to which the few kernels are added that it does not know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from letheon.engine.engine import Engine
from letheon.engine.reference import reference_values
from letheon.engine.values import token_values
from letheon.model.codes import matrix_shape
from letheon.model.layers import trunk_of
from letheon.objective.parts import Term, compose, needs_of
from letheon.objective.values import roles_of
from letheon.training.randomness import dropout_of_step, dropouts_of
from letheon.unlearning.planning.demand import Demand, Piece, Tokens
from letheon.unlearning.planning.machine import Rates
from letheon.unlearning.planning.trace import (
    Valueless,
    run_backward,
    valueless_batch,
    valueless_store,
)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of a stage of the run."""

    name: str
    trunk: float
    """In the dtype of the weights."""
    head: float
    """In float32."""

    def seconds(self, rates: Rates) -> float:
        """Return how long they take at full rate."""
        return self.trunk / rates.trunk + self.head / rates.head

    @property
    def flops(self) -> float:
        """All of them."""
        return self.trunk + self.head


@dataclass(frozen=True, slots=True)
class PassFlops:
    """Operations of matrix products in one forward, and backward if there is one."""

    trunk: float
    attention: float
    """Of queries with keys, and of their weights with values; half of all pairs where attention is causal."""
    head: float
    """Of the head and the objective."""


def work_of(engine: Engine, demand: Demand, terms: tuple[Term, ...]) -> tuple[Work, ...]:
    """Return the operations of each stage.

    A step, the reference pass and a scoring are counted over `demand.sample`. The products of the trunk are scaled by
    the tokens that the stage reads, its attention by the sum of their rows' squared lengths, the head and the objective
    by the answer tokens. The last layer, which a step runs at answer positions only, is scaled with the trunk. Rows
    that run padded are counted without their padding.
    """
    sample = demand.sample
    step, reference, scoring = _count(engine, terms, sample)
    longest = max(len(sequence.input_ids) for sequence in sample.sequences)
    at_once = longest * len(sample.sequences) if engine.path == "padded" else demand.sampled.read
    times = demand.num_scorings

    def scaled(name: str, counted: PassFlops, tokens: Tokens) -> Work:
        trunk = counted.trunk * tokens.read / at_once + counted.attention * tokens.squares / demand.sampled.squares
        return Work(name, trunk, counted.head * tokens.answers / max(demand.sampled.answers, 1))

    found = (
        scaled("steps", step, demand.trained),
        scaled("reference pass", reference, demand.reference),
        scaled(f"scoring, {times} times", scoring, demand.scoring.times(times)),
        Work("choosing the template", scoring.trunk * demand.choosing_tokens / at_once, 0),
    )
    return tuple(work for work in found if work.flops)


def rough_work(model: PreTrainedModel, demand: Demand) -> tuple[Work, ...]:
    """Return about what each stage takes of a model that cannot be run without values: 2 N operations a token and pass.

    N counts the matrices of the trunk, all experts included; a step is a forward, and a backward as long.
    """
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    matrices = (p for p in trunk_of(model).parameters() if p.ndim >= 2 and id(p) not in looked_up)
    a_token = 2 * sum(matrix_shape(matrix).numel() for matrix in matrices)
    times = demand.num_scorings
    found = (
        Work("steps", 2 * a_token * demand.trained.read, 0),
        Work("reference pass", a_token * demand.reference.read, 0),
        Work(f"scoring, {times} times", a_token * times * demand.scoring.read, 0),
        Work("choosing the template", a_token * demand.choosing_tokens, 0),
    )
    return tuple(work for work in found if work.flops)


def _count(engine: Engine, terms: tuple[Term, ...], piece: Piece) -> tuple[PassFlops, PassFlops, PassFlops]:
    """Return the operations of a step over a piece, of the reference's forward pass and of a scoring."""
    batch, needs = valueless_batch(piece), needs_of(terms)
    stored: dict[str, Tensor] = {}

    def look_up() -> None:
        stored.update(reference_values(engine, batch, needs))

    def score() -> None:
        engine.likeliest(batch)

    def loss() -> Tensor:
        store = valueless_store(engine, piece, stored)
        return compose(terms, token_values(engine, store, batch, needs=needs), roles_of(batch)).total

    with Valueless(), engine.running():
        with torch.no_grad(), engine.adapter_off():
            reference = counted_flops(engine, look_up)
        with torch.no_grad():
            scoring = counted_flops(engine, score)
        with dropout_of_step(dropouts_of(engine.model), seed=0, step=0):
            return counted_flops(engine, loss), reference, scoring


def counted_flops(engine: Engine, forward: Callable[[], Tensor | None]) -> PassFlops:
    """Return the operations of `forward`, which runs the trunk once, and of the backward pass of the loss it returns.

    To the head and the objective belongs what comes after the trunk: in the forward, and in the backward until the
    gradient of the trunk's states is known.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    marks: dict[str, int] = {}

    def mark(name: str) -> None:
        marks[name] = counter.get_total_flops()

    def after_trunk(_module: object, _inputs: object, output: Any) -> None:
        mark("trunk is done")
        if output[0].requires_grad:
            marks["head is through"] = 0  # stays so where the loss does not take these states
            output[0].register_hook(lambda _: mark("head is through"))

    hook = trunk_of(engine.model).register_forward_hook(after_trunk)
    try:
        with counter:
            loss = forward()
            mark("forward is done")
            if loss is not None:
                run_backward(loss)
    finally:
        hook.remove()
    total, counts = counter.get_total_flops(), counter.get_flop_counts().get("Global", {})
    attention = sum(counts.get(kernel, 0) for kernel in _ATTENTION)
    head_end = max(marks.get("head is through", total), marks["forward is done"])
    head = head_end - marks["trunk is done"]
    return PassFlops(trunk=total - attention - head, attention=attention, head=head)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *others: Any, **_: Any) -> int:
    return _num_pairs(query, key, is_causal=len(others) > 1 and others[1]) * 2 * (query[-1] + value[-1])


def _attention_backward_flops(
    _: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *others: Any, **__: Any
) -> int:
    """The scores once more, the gradients of queries and keys, those of weights and values."""
    return _num_pairs(query, key, is_causal=others[3]) * 2 * (3 * query[-1] + 2 * value[-1])


def _num_pairs(query: torch.Size, key: torch.Size, *, is_causal: bool) -> int:
    batch, heads, num_queries, _ = query
    return batch * heads * num_queries * key[2] // (2 if is_causal else 1)


def _added_product_flops(_: torch.Size, left: torch.Size, right: torch.Size, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


_aten: Any = torch.ops.aten
_ATTENTION = (
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
)
FORMULAS: dict[Any, Any] = {
    _aten.addmm_: _added_product_flops,
    _ATTENTION[0]: _attention_flops,
    _ATTENTION[1]: _attention_backward_flops,
}
"""Kernels that torch's counter does not know."""
