"""Greedy generation: batched, exact, and against a naive loop."""

import copy
from random import Random
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import ARCHITECTURES, CASES, random_model
from letheon.errors import EvaluationError
from letheon.evaluation import columns, decoding, generation
from letheon.evaluation.decoding import can_be_batched
from letheon.evaluation.generation import generate, generate_answers
from small import tiny_model

PROMPTS = [
    "Mira Tolland keeps bees in the village of Harrow, where",
    "Which harbour?",
    "The old lighthouse keeper",
    "What is the phone number of Mira Tolland? 555",
    "S",
    "Which harbour did the ship leave from? Veldhaven wrote letters to the sea every winter evening.",
]
WORDS = " ".join(PROMPTS).split()


def naive_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, steps: int) -> list[int]:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(steps):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in ids[0, start:]]


@pytest.mark.parametrize("architecture", ["olmo", "gpt2", "gemma2", "gpt-neox"])
def test_batched_and_exact_give_what_a_naive_loop_gives(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(architecture, tokenizer)
    expected = []
    for prompt in PROMPTS:
        tokens = naive_tokens(model, tokenizer, prompt, 12)
        end = tokens.index(0) if 0 in tokens else len(tokens)
        expected.append(cast("str", tokenizer.decode(tokens[:end], skip_special_tokens=True)))
    assert len(set(expected)) > 1
    batched = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=4)
    exact = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, exact=True)
    assert exact == [tokenizer.clean_up_tokenization(text) for text in expected]
    assert batched == exact


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_join_and_leave_a_batch_say_what_they_say_alone(
    name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(CASES[name].config(len(tokenizer)))
    assert can_be_batched(model) == (name not in ("bloom", "recurrent-gemma", "llama-4"))
    # Many ends, so that rows leave at all times; small sizes, so that rows join in parts and buffers move and grow.
    cast("Any", model.generation_config).eos_token_id = list(range(0, 400, 13))
    monkeypatch.setattr(columns, "SPARE", 3)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 40)
    monkeypatch.setattr(decoding, "GUESS_TRIAL", 10**9)
    monkeypatch.setattr(generation, "FIRST_CUT", 4)
    draw = Random(0)
    prompts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 7))) for _ in range(8)]
    expected = generate_answers(model, tokenizer, prompts, max_new_tokens=12, exact=True)
    assert len({len(text) for text in expected}) > 1
    for batch_size in (1, 3, 32):
        assert generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size) == expected
        guesses = [text[1 : draw.randint(0, len(text) + 2)] + draw.choice(["", " bees"]) for text in expected]
        found = generate(model, tokenizer, prompts, guesses=guesses, max_new_tokens=12, batch_size=batch_size)
        assert [answer.text for answer in found] == expected


def test_guesses_are_given_up_when_they_are_wrong(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "GUESS_TRIAL", 10)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 1)
    expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=4)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    found = generate(model, tokenizer, PROMPTS, guesses=["bees " * 20] * 6, max_new_tokens=4)
    assert [answer.text for answer in found] == expected
    # A guess is cut to the room that is left, 3 tokens; after 4 wrong ones more than 10 tokens were guessed in vain.
    prompts = sorted((len(tokenizer(prompt).input_ids) for prompt in PROMPTS), reverse=True)
    assert lengths[:6] == [*(length + 3 for length in prompts[:4]), *prompts[4:]]


@pytest.mark.parametrize("exact", [False, True])
def test_the_end_token_is_the_only_stop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, exact: bool
) -> None:
    tokens = naive_tokens(model, tokenizer, PROMPTS[0], 10)
    place = next(i for i in range(5, 10) if tokens[i] not in tokens[:i])
    model.generation_config.eos_token_id = tokens[place]
    found = generate_answers(model, tokenizer, PROMPTS[:3], max_new_tokens=10, exact=exact)
    # This end is an ordinary token of the vocabulary, so it is the last one decoded.
    assert found[0] == tokenizer.clean_up_tokenization(cast("str", tokenizer.decode(tokens[: place + 1])))


def test_settings_of_the_checkpoint_have_no_say(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8)
    own = GenerationConfig(
        do_sample=True, temperature=3.0, top_k=3, repetition_penalty=9.0, no_repeat_ngram_size=1, min_new_tokens=8,
        suppress_tokens=[5, 6, 7], max_length=3, eos_token_id=0,
    )  # fmt: skip
    model.generation_config = own
    model.train()
    assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8) == expected
    assert model.generation_config is own
    assert model.training


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_has_its_say(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    plain = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6)
    own = model.generation_config
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    found = generate_answers(adapted, tokenizer, PROMPTS, max_new_tokens=6)
    assert model.generation_config is own
    merged = adapted.merge_and_unload()
    assert found == generate_answers(merged, tokenizer, PROMPTS, max_new_tokens=6)
    assert found != plain


def test_a_tokenizer_without_padding_is_left_as_it_is(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    bare.padding_side = "right"
    expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert generate_answers(model, bare, PROMPTS, max_new_tokens=6) == expected
    assert bare.pad_token is None
    assert bare.padding_side == "right"


def test_spaces_before_punctuation_are_cleaned_up(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer("Harrow , it 's there .").input_ids
    assert generation._decode(tokenizer, tokens) == "Harrow, it's there."


def test_an_answer_ends_with_the_position_table(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("gpt2", tokenizer)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    word = tokenizer("Harrow").input_ids
    texts = ["Harrow" * (240 // len(word)), "Which harbour?"]
    long = len(tokenizer(texts[0]).input_ids)
    assert 200 < long < 256
    batched = generate_answers(model, tokenizer, texts, max_new_tokens=60)
    assert batched == generate_answers(model, tokenizer, texts, max_new_tokens=60, exact=True)
    expected = naive_tokens(model, tokenizer, texts[0], 256 - long)
    end = expected.index(0) if 0 in expected else len(expected)
    assert batched[0] == generation._decode(tokenizer, expected[:end])


def test_a_prompt_that_leaves_no_room_is_refused_by_name(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(EvaluationError, match=r"forget row 9sc1: the prompt has \d+ tokens, .* context is 256"):
        generate_answers(model, tokenizer, ["Fine", "bees " * 300], names=["forget row 8sc1", "forget row 9sc1"])
    with pytest.raises(EvaluationError, match="prompt 1: the prompt has no tokens"):
        generate_answers(model, tokenizer, [""])


def test_progress_ends_with_every_row_and_no_prompts_give_no_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    seen: list[tuple[int, int]] = []
    generate_answers(
        model, tokenizer, PROMPTS, max_new_tokens=3, batch_size=2, progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(2, 6), (4, 6), (6, 6)]
    assert generate_answers(model, tokenizer, []) == []
