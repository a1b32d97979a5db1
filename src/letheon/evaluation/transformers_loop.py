"""Generation by transformers' own loop, for models that `decode` does not know and for exact answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from letheon.devices import kept_random_state
from letheon.evaluation.decoding import Answer

_WHOLE_VOCABULARY: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def batches_up_to(answers: Sequence[Answer], cut: int, *, batch_size: int) -> list[list[Answer]]:
    """Return open answers in batches of equal length that all take equally many steps up to `cut`.

    Nothing is padded.
    """
    groups: dict[tuple[int, int], list[Answer]] = {}
    for answer in answers:
        if answer.is_open and _steps_to(answer, cut) > 0:
            groups.setdefault((_steps_to(answer, cut), len(answer.prompt) + len(answer.new)), []).append(answer)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def extend(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    cut: int,
    ends: Sequence[int],
    generator: torch.Generator | None,
) -> None:
    """Generate up to `cut` new tokens of each answer of a batch, drawn if there is a `generator`."""
    config = GenerationConfig(
        max_new_tokens=_steps_to(answers[0], cut),
        do_sample=generator is not None,
        **({} if generator is None else _WHOLE_VOCABULARY),
        num_beams=1,
        use_cache=True,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    input_ids = torch.tensor([a.prompt + a.new for a in answers], device=model.device)
    with _own_settings(model, config), _seeded(generator):
        output = cast("Any", model).generate(
            inputs=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config
        )
    for answer, tokens in zip(answers, output[:, input_ids.shape[1] :].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
        answer.new += tokens[:end]
        answer.has_ended = end is not None


def _steps_to(answer: Answer, cut: int) -> int:
    return min(cut, answer.room) - len(answer.new)


@contextmanager
def _own_settings(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Hide the checkpoint's generation settings, which transformers would use wherever `config` leaves a field open."""
    original = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = original


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Let transformers, which takes no generator, draw from a seed of `generator`."""
    if generator is None:
        yield
        return
    with kept_random_state():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        yield
