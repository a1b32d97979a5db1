"""Questions and answers with every token: those that open-unlearning hides from the model, or does not score, too.

It hides tokens that equal the padding, also where they end a turn of the prompt, and it begins the labels after as many
tokens as "Answer: " gives alone, which leaves out the first token of most answers. Scores are as there; where either
changes tokens, those of this form stand beside them as variants.
"""

from dataclasses import dataclass, replace

from letheon.data.forms import CHAT
from letheon.evaluation.suite import Asked
from letheon.evaluation.templates import LabelledSequence, QuestionTemplate


@dataclass(frozen=True, slots=True)
class SoundTemplate:
    """A template of open-unlearning's with which nothing is hidden, and every token of an answer is a label."""

    given: QuestionTemplate

    @property
    def name(self) -> str:
        """The name of the template."""
        return self.given.name

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.given.end

    @property
    def padding(self) -> None:
        """No token is hidden."""
        return

    def sequence(self, question: str, answer: str) -> LabelledSequence:
        """Return the question with an answer and the end of sequence: the same tokens, and all labels."""
        whole = self.given.sequence(question, answer)
        if self.name == CHAT:
            return whole
        bare = self.given.bare_prompt(question)
        start = next((i for i, (a, b) in enumerate(zip(bare, whole.ids, strict=False)) if a != b), len(bare))
        return replace(whole, start=max(1, min(start, whole.start)))

    def prompt(self, question: str, answer: str) -> list[int]:
        """Return the tokens after which an answer is generated: those before the labels."""
        sequence = self.sequence(question, answer)
        return list(sequence.ids[: sequence.start])

    def answer_text(self, question: str, answer: str) -> str:
        """Return the answer as the reference compares it."""
        return self.given.answer_text(question, answer)

    def label_text(self, sequence: LabelledSequence) -> str:
        """Return the labels as text."""
        return self.given.label_text(sequence)

    def decoded(self, ids: list[int]) -> str:
        """Return tokens as text."""
        return self.given.decoded(ids)


def sound_template(template: QuestionTemplate, asked: Asked) -> SoundTemplate | None:
    """Return the template with every token; None where that changes no question and no answer."""
    sound = SoundTemplate(template)
    for row in (row for rows in asked.rows.values() for row in rows):
        as_given = template.sequence(row.prompt, row.answer)
        hides = template.padding in as_given.ids[: as_given.start]
        if hides or sound.sequence(row.prompt, row.answer) != as_given:
            return sound
    return None
