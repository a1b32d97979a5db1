"""Floating-point operations of a run.

Notation: N parameters of the trunk that a token is multiplied with, N_b those that its gradient goes back through, V
vocabulary, D width, T tokens read, A answer tokens (A_f to forget, A_r to keep). Norms, attention scores and what is
done element by element are left out: a few per cent for rows of some hundred tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from letheon.errors import ModelError
from letheon.model.adapted import decoder_layers
from letheon.model.engine import Engine
from letheon.model.lower import lowest_trained_layer
from letheon.model.trunk import trunk_of
from letheon.objective.methods import Needs, Term, needs_of
from letheon.training.plan.demand import Demand
from letheon.training.plan.machine import Rates


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


def work_of(engine: Engine, demand: Demand, terms: tuple[Term, ...], *, num_adapter: int) -> tuple[Work, ...]:
    """Return the operations of each stage; `num_adapter` are the parameters of an adapter, 0 without one.

    steps           (2 N + 2 N_b) T for an adapter everywhere: 4 N T; + 6 T for each parameter of the adapter, 2 T
                    for each trained one of the trunk: 6 N T for full fine-tuning; the head: see `_head_products`.
                    Gradient checkpointing: 2 N_b T more, last layer excepted. Stored lower states: 2 (N - N_b) T less
    reference pass  2 N T + 2 V D A, + 2 V D A_r for the expected embeddings of a forward KL
    scoring         2 N T + 2 V D A each time
    choosing        2 N T over the rows that templates are tried on
    """
    size, needs = _products(engine.model), needs_of(terms)
    linear = engine.head.is_linear and not engine.trains_head
    step, reference, scored = demand.trained, demand.reference, demand.scoring
    forward = size.passed if engine.begins_at else size.trunk
    again = size.passed - size.last if engine.recomputes else 0
    per_token = 2 * (forward + again) + 2 * size.passed + 2 * size.trained + 6 * num_adapter
    expected = reference.retain if needs.kl == "forward" and linear else 0
    times = demand.num_scorings
    found = (
        Work("steps", per_token * step.read, size.head * _head_products(engine, demand, needs)),
        Work("reference pass", 2 * size.trunk * reference.read, 2 * size.head * (reference.answers + expected)),
        Work(f"scoring, {times} times", times * 2 * size.trunk * scored.read, times * 2 * size.head * scored.answers),
        Work("choosing the template", 2 * size.trunk * demand.choosing_tokens, 0),
    )
    return tuple(work for work in found if work.flops)


def _head_products(engine: Engine, demand: Demand, needs: Needs) -> float:
    """Return the operations of the head in all steps, over V D.

    A frozen linear head: 4 A (logits, gradient of the states). A frozen one that is not: 6 A, since logits are formed
    again in the backward pass; a trained one: 8 A. Where the KL is taken from logits, as many at A_r again and 4 A_r
    for the reference's; where a loss takes logits, 4 A_f (6 if the head is trained) and 2 A_f for the reference's.
    """
    tokens, trained = demand.trained, engine.trains_head
    linear = engine.head.is_linear and not trained
    per_answer = 4 if linear else 8 if trained else 6
    total = per_answer * tokens.answers
    if needs.kl is not None and not (linear and needs.kl == "forward"):
        total += ((8 if trained else 6) + 4) * tokens.retain
    if needs.forget_logits:
        total += (6 if trained else 4) * tokens.forget
    return total + (2 * tokens.forget if needs.reference_logits else 0)


@dataclass(frozen=True, slots=True)
class _Products:
    """Parameters that a token is multiplied with, adapters left out."""

    trunk: int
    """N: all matrices of the trunk; of experts those that a token goes to."""
    passed: int
    """N_b: those of the lowest decoder layer with something trained in it, and of all above."""
    last: int
    """Those of the last decoder layer."""
    trained: int
    """Those that are trained themselves."""
    head: int
    """V D."""


def _products(model: PreTrainedModel) -> _Products:
    trunk = trunk_of(model)
    try:
        layers, first = list(decoder_layers(model)), lowest_trained_layer(model)
    except ModelError:
        layers, first = [], 0
    whole = sum(_multiplied(model, trunk))
    below = sum(sum(_multiplied(model, layer)) for layer in layers[:first])
    head = model.get_output_embeddings().weight
    return _Products(
        trunk=whole,
        passed=whole - below,
        last=sum(sum(_multiplied(model, layer)) for layer in layers[-1:]),
        trained=sum(_multiplied(model, trunk, trained_only=True)),
        head=head.numel(),
    )


def _multiplied(model: PreTrainedModel, module: nn.Module, *, trained_only: bool = False) -> Iterator[int]:
    """Yield the size of each matrix in `module`; of a stack of experts the share that a token goes to."""
    config = model.config.get_text_config()
    chosen = int(getattr(config, "num_experts_per_tok", None) or 0)
    looked_up = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2 or id(parameter) in looked_up or ".lora_" in name:
            continue
        if parameter.requires_grad or not trained_only:
            is_stack = parameter.ndim == 3 and chosen
            yield parameter.numel() * chosen // parameter.shape[0] if is_stack else parameter.numel()
