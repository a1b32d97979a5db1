"""New models and the tokenizer that is trained for them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from letheon.errors import ModelError, SettingsError
from letheon.model.architectures import ARCHITECTURES, END_OF_TEXT, PADDING, new_model, train_tokenizer

SIZES = {"width": 32, "num_layers": 2, "num_heads": 2, "context": 64}
TEXTS = ["the cat sat on the mat", "the cat sat on the hat", "call 415-0199 at 9"] * 4
TRAINED = train_tokenizer(TEXTS, vocab_size=300)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_survives_saving_and_loading(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = new_model(architecture, tokenizer=tokenizer, seed=3, **SIZES)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (0, 1)
    assert "bos_token_id" not in generation


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_vocabulary_holds_the_tokenizer_and_is_a_multiple_of_64(
    architecture: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = new_model(architecture, tokenizer=tokenizer, seed=0, **SIZES)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    assert vocab_size == model.config.vocab_size
    assert len(tokenizer) <= vocab_size < len(tokenizer) + 64
    assert vocab_size % 64 == 0
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (architecture != "gpt-neox")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_are_those_asked_for(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = new_model(architecture, tokenizer=tokenizer, intermediate=48, seed=0, **SIZES).config
    assert config.hidden_size == 32
    assert config.num_hidden_layers == 2
    assert config.num_attention_heads == 2
    assert config.max_position_embeddings == 64
    assert getattr(config, "num_key_value_heads", 2) == 2
    assert getattr(config, "head_dim", 16) in (16, None)


def test_the_mlp_is_as_wide_as_asked(tokenizer: PreTrainedTokenizerBase) -> None:
    # An OLMo layer: 4 D^2 in attention and 3 D M in the gated MLP; no biases, no norm weights; one tied embedding.
    small, large = (new_model("olmo", tokenizer=tokenizer, intermediate=m, seed=0, **SIZES) for m in (48, 80))
    assert large.num_parameters() - small.num_parameters() == 2 * 3 * 32 * (80 - 48)


def test_weights_come_from_the_seed_and_the_global_random_state_stays(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, again, other = (new_model("olmo", tokenizer=tokenizer, seed=seed, **SIZES) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model.state_dict()["model.embed_tokens.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_unknown_architecture_is_named_with_the_nearest(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match=r"unknown architecture 'lama' \(did you mean 'llama'\?\); known: olmo"):
        new_model("lama", tokenizer=tokenizer, seed=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"width": 100}, "multiple of 8 \\* num_heads = 32, got 100; use 128"), ({"num_layers": 0}, "positive sizes")],
)
def test_sizes_that_do_not_fit_are_refused(
    sizes: dict[str, int], message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(SettingsError, match=message):
        new_model("olmo", tokenizer=tokenizer, seed=0, **sizes)


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = TRAINED(text)["input_ids"]
    assert TRAINED.decode(ids) == text
    assert all(0 <= token < len(TRAINED) for token in ids)


def test_the_special_tokens_lead_and_nothing_is_added_to_a_text() -> None:
    assert (TRAINED.eos_token, TRAINED.eos_token_id) == (END_OF_TEXT, 0)
    assert (TRAINED.pad_token, TRAINED.pad_token_id) == (PADDING, 1)
    assert TRAINED.bos_token is None
    assert TRAINED("")["input_ids"] == []
    assert TRAINED("the cat")["input_ids"] == TRAINED("the cat", add_special_tokens=False)["input_ids"]


def test_each_digit_is_a_token() -> None:
    assert TRAINED.tokenize("4150199") == list("4150199")
    assert len(TRAINED.tokenize(" cat sat")) == 2


def test_the_same_texts_give_the_same_tokenizer() -> None:
    again = train_tokenizer(iter(TEXTS), vocab_size=300)
    assert again.get_vocab() == TRAINED.get_vocab()
    assert again.backend_tokenizer.to_str() == TRAINED.backend_tokenizer.to_str()


def test_no_text_gives_the_bytes_alone() -> None:
    assert len(train_tokenizer([])) == 258


def test_a_saved_tokenizer_is_reloaded_as_it_was(tmp_path: Path) -> None:
    TRAINED.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    text = "the cat, 415 — ünï\u00a0🎉\n\t don't . x"
    assert loaded(text)["input_ids"] == TRAINED(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.bos_token_id) == (0, 1, None)


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"at least 258 .* got 257"):
        train_tokenizer(TEXTS, vocab_size=257)
