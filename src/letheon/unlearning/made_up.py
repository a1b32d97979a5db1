"""Other answers to forget prompts that the model itself makes up (AltPO, arXiv 2409.13474)."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import GenerationConfig

from letheon.data.sequences import TokenSequence
from letheon.devices import kept_random_state
from letheon.model.loading import LoadedModel, context_length

EXTRA_TOKENS = 4


@torch.no_grad()
def generate_alternatives(
    loaded: LoadedModel, forget: Collection[TokenSequence], *, per_row: int, seed: int, batch_size: int = 32
) -> list[TokenSequence]:
    """Return each forget sequence with answers sampled from the model at temperature 1, row after row.

    A sampled answer begins with another token than the true one and is at most a few tokens longer; a sequence whose
    answer is cut off stays as it is. Differs from the paper, which asks an instruction-tuned model for another answer
    in words: a base model that knows the row by heart would say the answer itself, so its first token is ruled out. The
    global random state is left as it was.
    """
    sequences = list(forget)
    # Answers of one length together: a batch samples until its longest is done.
    answered = [i for i, sequence in enumerate(sequences) if sequence.num_answer_tokens]
    order = sorted(answered, key=lambda i: (sequences[i].num_answer_tokens, sequences[i].answer_start))
    made = {i: [sequence] * per_row for i, sequence in enumerate(sequences) if not sequence.num_answer_tokens}
    with kept_random_state():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            for index, found in zip(group, _sample(loaded, [sequences[i] for i in group], per_row), strict=True):
                made[index] = found
    return [sequence for index in range(len(sequences)) for sequence in made[index]]


def longest_alternatives(forget: Collection[TokenSequence], *, per_row: int) -> list[TokenSequence]:
    """Return sequences as long as those of `generate_alternatives` can get, without a model to make them up."""
    longest = [replace(s, input_ids=s.input_ids + s.input_ids[-1:] * EXTRA_TOKENS) for s in forget]
    return [sequence for sequence in longest for _ in range(per_row)]


def _sample(loaded: LoadedModel, group: list[TokenSequence], per_row: int) -> list[list[TokenSequence]]:
    tokenizer, model = loaded.tokenizer, loaded.model
    generate: Any = model.generate
    eos = int(cast("int", tokenizer.eos_token_id))
    ends = sorted({eos, *(sequence.end[-1] for sequence in group if sequence.end)})
    pad = eos if tokenizer.pad_token_id is None else int(cast("int", tokenizer.pad_token_id))
    prompts = [sequence.input_ids[: sequence.answer_start] for sequence in group]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    first = [sequence.input_ids[sequence.answer_start] for sequence in group]
    limit = context_length(model.config) or width + 1_000_000
    room = min(max(s.num_answer_tokens for s in group) + EXTRA_TOKENS, limit - width)

    def other_first_token(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == width:
            for place in range(scores.shape[0]):
                scores[place, first[place // per_row]] = -torch.inf
            for end in {pad, *ends}:
                scores[:, end] = -torch.inf  # an answer has at least one token
        return scores

    output = generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=max(room, 1),
            num_return_sequences=per_row,
            pad_token_id=pad,
            eos_token_id=ends,
        ),
        logits_processor=[other_first_token],
    )
    return [
        [_joined(sequence, output[place * per_row + k, width:].tolist(), ends) for k in range(per_row)]
        for place, sequence in enumerate(group)
    ]


def _joined(sequence: TokenSequence, new: list[int], ends: Collection[int]) -> TokenSequence:
    """Put the sampled text, up to its end, behind the prompt."""
    length = next((i for i, token in enumerate(new) if token in ends), len(new))
    kept = min(length, sequence.num_answer_tokens + EXTRA_TOKENS)
    return TokenSequence(sequence.input_ids[: sequence.answer_start] + tuple(new[:kept]), sequence.answer_start)
