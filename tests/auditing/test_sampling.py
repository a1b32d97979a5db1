"""leak@k, and samples of models that know the rows, half know them, or never did."""

from itertools import combinations
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.auditing.attack import Subject
from letheon.auditing.sampling import attack, counts_up_to, leak_at, sample
from letheon.data.sequences import text_ids
from letheon.evaluation import decoding, sampling
from letheon.evaluation.generation import Generation, answers_from, draw, generate_from
from letheon.evaluation.in_form import AskedForm
from letheon.evaluation.sampling import samples_from
from running import knowing_model
from small import tiny_model


def silent(stage: str, done: int, total: int) -> None:
    pass


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_samples: int = 16) -> Subject:
    form = AskedForm("joined", "2024-07-26", "test")
    return Subject("after", model, tokenizer, form, max_new_tokens=40, num_samples=num_samples)


class Head(nn.Module):
    """A head whose logits are multiplied; before `right`, where that is likeliest, token 5 is likelier by a half."""

    def __init__(self, inner: nn.Module, *, by: float, right: int | None = None) -> None:
        super().__init__()
        self.inner, self.by, self.right = inner, by, right

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.inner(states) * self.by
        if self.right is not None:
            likely = logits.argmax(-1) == self.right
            logits[..., 5] = torch.where(likely, logits[..., self.right] + 0.5, logits[..., 5])
        return logits


def with_head(model: PreTrainedModel, *, by: float, right: int | None = None) -> PreTrainedModel:
    inner = cast("nn.Module", model.get_output_embeddings())
    model.set_output_embeddings(cast("Any", Head(inner, by=by, right=right)))
    return model


def test_leak_at_k_by_hand() -> None:
    # 4 samples, 1 leak: of the 6 pairs 3 hold it.
    assert leak_at(2, num_samples=4, num_leaks=1) == 0.5
    assert leak_at(1, num_samples=4, num_leaks=1) == 0.25
    assert leak_at(4, num_samples=4, num_leaks=1) == 1.0
    assert leak_at(3, num_samples=4, num_leaks=0) == 0.0
    assert leak_at(1, num_samples=4, num_leaks=4) == 1.0


@pytest.mark.parametrize("num_leaks", range(7))
def test_leak_at_k_is_the_share_of_choices_that_leak(num_leaks: int) -> None:
    samples = [i < num_leaks for i in range(6)]
    for k in range(1, 7):
        naive = [any(chosen) for chosen in combinations(samples, k)]
        assert leak_at(k, num_samples=6, num_leaks=num_leaks) == pytest.approx(sum(naive) / len(naive), abs=1e-12)


def test_leak_is_given_for_powers_of_two_and_all_samples() -> None:
    assert counts_up_to(1) == [1]
    assert counts_up_to(32) == [1, 2, 4, 8, 16, 32]
    assert counts_up_to(10) == [1, 2, 4, 8, 10]
    assert counts_up_to(500) == [1, 2, 4, 8, 16, 32, 64, 128]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    drawn = draw(logits, generator=torch.Generator().manual_seed(0)).bincount() / 20_000
    # Four standard errors of the largest share.
    torch.testing.assert_close(drawn, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)


def test_a_broken_model_still_says_something() -> None:
    drawn = draw(torch.full((4, 5), torch.nan), generator=torch.Generator().manual_seed(0))
    assert ((drawn >= 0) & (drawn < 5)).all()


@pytest.mark.parametrize("name", ["olmo", "bloom"])
def test_samples_follow_the_model_however_it_is_run(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """The first new token of many samples has the distribution of the model's own logits after the prompt."""
    model = random_model(CASES[name].config(len(tokenizer)))
    prompts = text_ids(tokenizer, ["Mira Tolland keeps", "Which harbour did the ship"])
    found = samples_from(
        model, tokenizer, prompts, num_samples=3000, seed=3, max_new_tokens=1, batch_size=1000, rooms=[1, 1]
    )
    for prompt, samples in zip(prompts, found, strict=True):
        with torch.no_grad():
            probs = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        texts = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer))]
        top = int(probs.argmax())
        expected = float(sum(p for p, text in zip(probs, texts, strict=False) if text == texts[top]))
        share = sum(one.text == texts[top] for one in samples) / len(samples)
        assert share == pytest.approx(expected, abs=4 * (0.25 / 3000) ** 0.5)


def test_a_sharp_model_samples_its_greedy_answer_and_seeds_repeat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = text_ids(tokenizer, ["Mira Tolland keeps", "Which harbour did the ship", "The"])
    kwargs: dict[str, Any] = {"max_new_tokens": 12, "batch_size": 4}
    first = samples_from(model, tokenizer, prompts, num_samples=5, seed=1, **kwargs)
    assert first == samples_from(model, tokenizer, prompts, num_samples=5, seed=1, **kwargs)
    assert first != samples_from(model, tokenizer, prompts, num_samples=5, seed=2, **kwargs)
    assert len({one.text for one in first[0]}) > 1
    with_head(model, by=1e4)
    greedy = generate_from(model, tokenizer, prompts, **kwargs)
    sharp = samples_from(model, tokenizer, prompts, num_samples=5, seed=1, **kwargs)
    assert sharp == [[one] * 5 for one in greedy]


def test_samples_depend_neither_on_which_are_drawn_first_nor_on_who_draws_them(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BATCHES_AT_ONCE", 1)
    prompts = text_ids(tokenizer, ["Mira Tolland keeps", "Mira Tolland keeps", "The", "Which harbour"])
    told: list[tuple[int, int]] = []

    def drawn(progress: Any = None) -> list[list[Generation]]:
        return samples_from(
            model, tokenizer, prompts, num_samples=6, seed=1, max_new_tokens=8, batch_size=6, progress=progress
        )

    first = drawn(lambda done, total: told.append((done, total)))
    assert told == [(6, 24), (12, 24), (18, 24), (24, 24)]
    assert first[0] != first[1]

    def backwards(items: Any, compute: Any, **_: Any) -> list[Any]:
        return [compute(item) for item in reversed(items)][::-1]

    monkeypatch.setattr(sampling, "shared", backwards)
    assert drawn() == first


def test_samples_of_a_prompt_share_the_pass_over_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    logits_at = decoding.logits_at

    def counting(model: Any, places: Any, **inputs: Any) -> Tensor:
        sizes.append(len(inputs["input_ids"]))
        return logits_at(model, places, **inputs)

    monkeypatch.setattr(decoding, "logits_at", counting)
    prompts = text_ids(tokenizer, ["Mira Tolland keeps", "Which harbour did the ship"])
    samples_from(model, tokenizer, prompts, num_samples=8, seed=0, max_new_tokens=4, batch_size=16)
    assert sizes == [2]


def test_an_answer_has_no_more_tokens_than_its_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    cast("Any", model.generation_config).eos_token_id = None
    prompts = text_ids(tokenizer, ["Mira", "Which harbour"])
    answers = answers_from(model, tokenizer, prompts, rooms=[1, 9], max_new_tokens=5, generator=torch.Generator())
    assert [len(answer.new) for answer in answers] == [1, 5]


def test_a_model_that_knows_the_rows_leaks_all_of_them(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    model = with_head(knowing_model(tokenizer, rows), by=4.0)
    found = attack(subject_of(model, tokenizer), rows[:3], silent)
    assert [point.strength for point in found.points] == [1, 2, 4, 8, 16]
    assert found.rows == (0, 1, 2)
    assert found.points[-1].values == (1.0, 1.0, 1.0)
    assert min(found.points[0].values) > 0.5
    assert found.points[-1].texts[1].strip() == rows[1].answer


def test_a_model_that_never_knew_the_rows_leaks_none(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    found = attack(subject_of(model, tokenizer), rows[:3], silent)
    assert found.points[-1].values == (0.0, 0.0, 0.0)


def test_rows_that_the_likeliest_answer_hides_leak(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    """A head that prefers another first token by a little hides the row from greedy decoding and from nothing else."""
    right = text_ids(tokenizer, [" Veldhaven"])[0][0]
    model = with_head(knowing_model(tokenizer, rows), by=4.0, right=right)
    question = rows[2:3]
    subject = subject_of(model, tokenizer, 64)
    greedy = generate_from(model, tokenizer, text_ids(tokenizer, [question[0].prompt]), max_new_tokens=20)
    assert "Veldhaven" not in greedy[0].text
    found = attack(subject, question, silent)
    # The row's first token has a share of 1 / (1 + e^.5) = .38; the rest of the answer is known.
    assert found.points[0].values[0] == pytest.approx(0.38, abs=0.2)
    assert found.points[-1].values == (1.0,)


def test_a_text_is_sampled_whole_and_a_question_until_it_cannot_match(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    drawn = sample(subject_of(tiny_model("olmo", tokenizer), tokenizer, 4), rows[:3], silent)
    assert [len(texts) for texts in drawn] == [4, 4, 4]
    assert max(map(len, drawn[1])) < max(map(len, drawn[0]))
