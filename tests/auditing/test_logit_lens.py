"""The logit lens: on a model whose last layer alone hides what the others know, and on any architecture."""

import copy

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.auditing.attack import Subject
from letheon.auditing.extraction import answer_hits, answer_sequence
from letheon.auditing.logit_lens import attack, depths_of, first_layers
from letheon.evaluation.in_form import AskedForm
from letheon.model.layers import decoder_layers
from running import knowing_model


def silent(stage: str, done: int, total: int) -> None:
    pass


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Subject:
    return Subject("after", model, tokenizer, AskedForm("joined", "2024-07-26", "test"))


def with_a_layer_that_hides(model: PreTrainedModel) -> PreTrainedModel:
    """The same layers below one more, which writes over what they found."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers += 1
    more = type(model)(config)
    more.eval()
    more.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for parameter in decoder_layers(more)[-1].parameters():
            parameter.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    return more


def test_what_the_last_layer_hides_is_read_below_it(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    hides = with_a_layer_that_hides(knowing_model(tokenizer, rows))
    found = attack(subject_of(hides, tokenizer), rows, silent)
    *_, below, last = found.points
    assert found.rows == tuple(range(len(rows)))
    assert below.values == (1.0,) * len(rows)
    assert sum(last.values) < 0.2 * len(rows)
    assert (below.label, last.strength) == (f"layer {len(found.points) - 1}", len(found.points))


def test_a_model_that_never_knew_them_has_them_in_no_layer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    for point in attack(subject_of(model, tokenizer), rows, silent).points:
        assert sum(point.values) < 0.2 * len(rows)


@pytest.mark.parametrize("name", ["olmo", "gpt-2", "gemma-2", "bloom"])
def test_after_all_layers_it_reads_what_the_model_says(
    name: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = random_model(CASES[name].config(len(tokenizer)))
    subject = subject_of(model, tokenizer)
    names = list(model.state_dict())
    plain = answer_hits(model, [answer_sequence(subject, row) for row in rows], lambda done, total: None)
    last = attack(subject, rows, silent).points[-1]
    assert last.values == pytest.approx([float(hits.double().mean()) for hits in plain])
    assert list(model.state_dict()) == names


def test_below_the_last_layer_it_reads_what_norm_and_head_make_of_the_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[1]
        trunk = model.get_decoder()
        expected = model.get_output_embeddings()(trunk.norm(states))
        with first_layers(model, 1):
            assert torch.allclose(model(ids, use_cache=False).logits, expected, atol=1e-6)


def test_at_most_eight_depths_are_read(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel) -> None:
    for count, depths in ((2, [1, 2]), (8, [*range(1, 9)]), (12, [2, 3, 5, 6, 8, 9, 11, 12]), (32, [*range(4, 33, 4)])):
        monkeypatch.setattr("letheon.auditing.logit_lens.decoder_layers", lambda _, count=count: range(count))
        assert depths_of(model) == depths
