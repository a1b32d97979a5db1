"""Rows of mixed length in a model that rotates positions otherwise in long ones, as Phi-3.5 does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.evaluation.generation import generate_answers
from letheon.evaluation.metrics.membership import document_losses
from running import events, model_of, run, short_run

LIMIT = 12
"""Tokens; rows take 4 to 41."""


@pytest.fixture
def longrope(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A small Phi-3 with other frequencies for sequences above the limit."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
    config = CASES["phi-3"].config(
        len(tokenizer),
        sliding_window=None,
        original_max_position_embeddings=LIMIT,
        rope_scaling={"rope_type": "longrope", "factor": 8.0, **factors},
    )
    return random_model(config)


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], longrope: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {**short_run(tmp_path, rows, longrope, tokenizer), "keep": "last", "epochs": 2, "batch_size": 4}


def test_a_run_over_short_and_long_rows_equals_one_that_reads_them_one_by_one(
    given: dict[str, Any], tmp_path: Path
) -> None:
    # Pieces of 16 tokens hold one row each, or the two short ones together.
    together, apart = run(given), run(given, out=tmp_path / "apart", max_batch_tokens=16)
    assert together.provenance["engine"]["path"] == "packed"
    first, second = (events(report.folder, "step") for report in (together, apart))
    assert [line["loss"] for line in first] == pytest.approx([line["loss"] for line in second], rel=1e-5)
    ours, theirs = model_of(together), model_of(apart)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@torch.no_grad()
def test_generation_takes_each_prompt_as_if_alone(
    longrope: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = ["Mira", "Mira Tolland keeps bees in the village of Harrow, where the river", "Which harbour?"]
    model: Any = longrope
    model.generation_config.eos_token_id = 0
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        found = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=1)
        expected.append(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
    assert generate_answers(longrope, tokenizer, prompts, max_new_tokens=8) == expected


def test_losses_of_documents_are_those_of_each_alone(
    longrope: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    documents = [
        "Mira keeps",
        "Which harbour did the ship leave from? Veldhaven",
        "The old lighthouse keeper wrote letters",
    ]
    alone = [document_losses(longrope, tokenizer, [document])[0] for document in documents]
    assert document_losses(longrope, tokenizer, documents) == pytest.approx(alone, rel=1e-5)
