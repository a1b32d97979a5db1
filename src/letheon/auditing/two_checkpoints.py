"""Two checkpoints: what does one recover who holds the model before and the unlearned one?

Each next token is taken by (1 + w) log p_before - w log p_after, which strengthens what unlearning took away (Wu et al.
2025, arXiv 2505.24379). As there, only tokens that the model before finds plausible are considered, so that a large w
does not pick what both find unlikely.

This is reported and never counts: the model before gives the rows away by itself, and a model that never saw them gives
in just as well. It says what it means to keep an old checkpoint, or an adapter that can be taken off.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel

from letheon.auditing.attack import Attack, Given, Knowledge, Point, Subject
from letheon.auditing.knowledge import ask, values_of
from letheon.data.rows import Row
from letheon.evaluation.decoding import can_be_batched
from letheon.progress import Progressed

WEIGHTS = (0.5, 1.0, 2.0)
PLAUSIBLE = 0.1
"""Share of the probability of the likeliest token, under the model before, that a token must have."""


def guided(before: Tensor, after: Tensor, *, weight: float) -> Tensor:
    """Return (1 + w) log p_before - w log p_after, (..., V), from the logits of both; -inf for implausible tokens."""
    old, new = before.float().log_softmax(-1), after.float().log_softmax(-1)
    is_plausible = old >= old.amax(-1, keepdim=True) + log(PLAUSIBLE)
    return torch.where(is_plausible, (1 + weight) * old - weight * new, -torch.inf)


class Guided(nn.Module):
    """Two models of one architecture that are asked as one; its cache holds the layers of both, side by side."""

    def __init__(self, before: PreTrainedModel, after: PreTrainedModel, *, weight: float) -> None:
        super().__init__()
        self.before, self.after, self.weight = before, after, weight
        self.config, self.generation_config = before.config, before.generation_config
        self._no_head = nn.Identity()

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return self.before.device

    def get_output_embeddings(self) -> nn.Module | None:
        """Return a module that is never called, since there are two heads; None where answers cannot share a batch."""
        return self._no_head if can_be_batched(self.before) else None

    def generate(self, *, inputs: Tensor, attention_mask: Tensor, generation_config: GenerationConfig) -> Tensor:
        """Return `inputs` (B, T), whose mask is all ones, with the greedy tokens after them; every step reads all."""
        assert bool(attention_mask.all())
        ends = torch.tensor(cast("list[int]", generation_config.eos_token_id or []), device=inputs.device)
        has_ended = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        for _ in range(cast("int", generation_config.max_new_tokens)):
            old, new = (
                cast("Any", model)(inputs, use_cache=False).logits[:, -1] for model in (self.before, self.after)
            )
            newest = guided(old, new, weight=self.weight).argmax(-1, keepdim=True)
            inputs = torch.cat([inputs, newest], dim=1)
            has_ended |= torch.isin(newest[:, 0], ends)
            if has_ended.all():
                break
        return inputs

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int = 0,
        use_cache: bool = False,
    ) -> SimpleNamespace:
        """Return an object with the guided `logits`, (B, T, V)."""
        given: Any = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given |= {"logits_to_keep": logits_to_keep, "use_cache": use_cache}
        caches = _halves(past_key_values)
        models: tuple[Any, Any] = self.before, self.after
        old, new = (model(**given, past_key_values=cache).logits for model, cache in zip(models, caches, strict=True))
        if past_key_values is not None and caches[0] is not None and caches[1] is not None:
            past_key_values.layers = [*caches[0].layers, *caches[1].layers]
        return SimpleNamespace(logits=guided(old, new, weight=self.weight))


def attack(subject: Subject, rows: Sequence[Row], tell: Progressed) -> Knowledge:
    """Ask both models as one for the rows."""
    before = subject.original
    assert before is not None, "the core asks what an attack needs"
    points = []
    for weight in WEIGHTS:
        both = cast("PreTrainedModel", Guided(before, subject.model, weight=weight))
        texts = ask(replace(subject, model=both), rows, tell, stage=f"asking both models, w = {weight:g}")
        points.append(Point(weight, values_of(rows, texts), label=f"w = {weight:g}", texts=tuple(texts)))
    return Knowledge(tuple(range(len(rows))), tuple(points))


def _halves(cache: Cache | None) -> tuple[Cache | None, Cache | None]:
    """The part of a cache that is each model's; new ones for a cache without layers."""
    if cache is None:
        return None, None
    if not cache.layers:
        return DynamicCache(), DynamicCache()
    middle = len(cache.layers) // 2
    return Cache(layers=cache.layers[:middle]), Cache(layers=cache.layers[middle:])


def _needs(given: Given) -> str | None:
    return None if given.has_original else "the model before is not there; give it by --before"


ATTACKS = (
    Attack(
        name="two-checkpoints",
        title="Two checkpoints, guided by their difference",
        source="Wu et al. 2025, arXiv 2505.24379",
        unit="w",
        run=attack,
        needs=_needs,
        passes=6.0,
        counts=False,
    ),
)
