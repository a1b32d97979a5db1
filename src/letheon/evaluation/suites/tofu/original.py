"""Questions and answers as tokens, as TOFU's own repository makes them (locuslab/tofu, commit 8c49eee).

It departs from open-unlearning in more than one way, and scores depend on each. It knows no chat templates. The tag
"Answer: " is among the labels, and the model is not given it before it generates. Prompt and answer together have at
most 200 tokens, for likelihoods and for generation alike, where the padding of a batch of 30 rows counts too. Of each
set the first 300 rows are asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from letheon.errors import DataError
from letheon.evaluation.templates import LabelledSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH, NUM_ROWS, BATCH_SIZE = 200, 300, 30


@dataclass(frozen=True, slots=True)
class OriginalTemplate:
    """Makes tokens of questions and answers for one tokenizer; what it has in common with `QuestionTemplate`."""

    tokenizer: "PreTrainedTokenizerBase"
    name: str
    question_tag: str
    end_tag: str
    answer_tag: str
    split_tag: str
    """Where the text of question and answer is split again; the model is given it only if it is no answer tag."""

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    @property
    def padding(self) -> int:
        """The token that is hidden from attention."""
        return self.end

    def sequence(self, question: str, answer: str) -> LabelledSequence:
        """Return the question with an answer and the end of sequence, which a text of 200 tokens does not have."""
        asked = f"{self.question_tag}{question}{self.end_tag}"
        ids: list[int] = self.tokenizer(f"{asked}{self.answer_tag}{answer}").input_ids[:MAX_LENGTH]
        whole = ids if len(ids) == MAX_LENGTH else [*ids, self.end]
        return LabelledSequence(tuple(whole), len(self.tokenizer(asked).input_ids))

    def prompt(self, question: str, answer: str) -> list[int]:
        """Return the tokens after which an answer is generated: those of the decoded text before the split."""
        text = self._text(question, answer).split(self.split_tag)[0]
        given = "" if self.split_tag == self.answer_tag else self.split_tag
        ids: list[int] = self.tokenizer(f"{text}{given}").input_ids
        return ids

    def answer_text(self, question: str, answer: str) -> str:
        """Return the answer as it is compared: what of the decoded text is between the first split and the next."""
        return [*self._text(question, answer).split(self.split_tag), ""][1]

    def label_text(self, sequence: LabelledSequence) -> str:
        """Return the labels as text."""
        return self.decoded(sequence.labels)

    def decoded(self, ids: Sequence[int]) -> str:
        """Return tokens as text without special tokens."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        cleans = getattr(self.tokenizer, "clean_up_tokenization_spaces", False)
        return str(self.tokenizer.clean_up_tokenization(text)) if cleans else text

    def _text(self, question: str, answer: str) -> str:
        return self.decoded(self.sequence(question, answer).ids)


def original_template(tokenizer: "PreTrainedTokenizerBase") -> OriginalTemplate:
    """Return the tags of Llama 2's chat for a tokenizer whose chat template has them, else "Question: " and "Answer: ".

    Raises:
        DataError: the tokenizer has no end of sequence.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token, which ends each answer; give it one")
    if "[INST]" in str(getattr(tokenizer, "chat_template", None) or ""):
        return OriginalTemplate(tokenizer, "inst", "[INST] ", " [/INST]", "", " [/INST]")
    return OriginalTemplate(tokenizer, "question-answer", "Question: ", "\n", "Answer: ", "Answer: ")


def rooms_of(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return how many new tokens each prompt gets: what its batch, as wide as its longest prompt, leaves of 200."""
    found: list[int] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        found += [max(1, MAX_LENGTH - max(map(len, batch)))] * len(batch)
    return found
