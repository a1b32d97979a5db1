"""What every attack that trains nothing keeps to, whatever the rows, the form and the architecture."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chats import chatty
from letheon import Row
from letheon.auditing.attack import AnyAttack, Attack, Given, Knowledge, Subject
from letheon.auditing.registry import attacks
from letheon.evaluation.in_form import AskedForm
from small import tiny_model

NAMES = [name for name in attacks() if not name.startswith("relearning")]
ROWS = [
    Row("q", "Who keeps Vell?", "Mira", "Task1", "question"),
    Row("d", "", "A document about the sea. It has two parts, 12345 and 67890, and ends.", "Task1", "completion"),
    Row("u", "¿Dónde está la llave?", "Bajo la lámpara 電話 123456", "Task1", "question"),
    Row("c", "The ship left", "at dawn.", "Task1", "completion"),
]
RETAIN = [
    Row("r1", "Who wrote?", "The keeper", "Task1", "question"),
    Row("r2", "The old", "lighthouse stood.", "Task1", "completion"),
    Row("r3", "", "Some text to keep.", "Task1", "completion"),
    Row("r4", "Who reads?", "The crew", "Task1", "question"),
]


def silent(stage: str, done: int, total: int) -> None:
    pass


def check(found: Knowledge) -> None:
    assert found.points
    assert set(found.rows) <= set(range(len(ROWS)))
    for point in found.points:
        assert len(point.values) == len(found.rows)
        assert all(0 <= value <= 1 for value in point.values)
        assert not point.texts or len(point.texts) == len(found.rows)


def judge(attack: AnyAttack, subject: Subject) -> None:
    if isinstance(attack, Attack):
        check(attack.run(subject, ROWS, silent))
        return
    for separated in attack.run(subject, ROWS * 3, ROWS * 2, silent).values():
        assert (len(separated.seen), len(separated.unseen)) == (3 * len(ROWS), 2 * len(ROWS))


@pytest.mark.parametrize("chat", ["qwen3", "mistral", None])
@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
def test_values_are_shares_of_the_asked_rows_and_the_models_stay_as_they_are(
    architecture: str, chat: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    writes = chatty(tokenizer, chat) if chat else tokenizer
    model, original = (tiny_model(architecture, writes, seed=seed) for seed in (0, 1))
    form = AskedForm("chat" if chat else "joined", "2024-07-26", "test")
    given = Given(rows=ROWS * 3, retain=RETAIN, unseen=ROWS * 3, has_original=True, has_holdout=True)
    subject = Subject("after", model, writes, form, given, original=original, max_new_tokens=12, num_samples=3)
    own = [value.clone() for one in (model, original) for value in one.state_dict().values()]
    for name in NAMES:
        judge(attacks()[name], subject)
        now = [value for one in (model, original) for value in one.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(own, now, strict=True)), name
        assert not model.training, name
