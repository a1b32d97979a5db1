"""Questions and answers as tokens, as open-unlearning makes them: a conversation, two lines, or Llama 2's tags.

What departs from the forms that rows are trained in (data/forms.py) is kept, because scores depend on it. The answer's
labels begin after as many tokens as the prompt has by itself. After "Answer: " that is one token too late for
tokenizers whose words carry the space before them, so the first token of the answer is not scored. Tokens that equal
the padding are hidden from attention, also where they end a turn.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from letheon.data.forms import CHAT, INST, dated
from letheon.data.system_message import DATE, SYSTEM, takes_system
from letheon.errors import DataError, SettingsError
from letheon.settings.suites import ASKED_FORMS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION_ANSWER = "question-answer"
WRITTEN_DATE = "10 Apr 2025"
"""The date that open-unlearning gives the templates of Llama 3."""
MAX_LENGTH = 512
"""Tokens at which text without a chat template is cut."""


@dataclass(frozen=True, slots=True)
class LabelledSequence:
    """A question with one answer: `ids` (T,), of which `ids[start:]` are the labels, the end of sequence included."""

    ids: tuple[int, ...]
    start: int

    @property
    def labels(self) -> tuple[int, ...]:
        """(L,) the tokens whose likelihood counts; empty where the prompt alone has as many tokens as both."""
        return self.ids[self.start :]


@dataclass(frozen=True, slots=True)
class QuestionTemplate:
    """Makes tokens of questions and answers for one tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    name: str
    system: str | None = None
    """The system message of a conversation; None without one."""

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    @property
    def padding(self) -> int:
        """The token that is hidden from attention: the tokenizer's padding, or else its end of sequence."""
        pad = self.tokenizer.pad_token_id
        return self.end if pad is None else int(pad)

    def prompt(self, question: str) -> list[int]:
        """Return the tokens after which an answer is generated."""
        if self.name == CHAT:
            return self._chat(self._asked(question), add_generation_prompt=True)
        return self._text(self._asked_text(question))

    def bare_prompt(self, question: str) -> list[int]:
        """Return the tokens of a prompt of text without the space that may end it."""
        return self._text(self._asked_text(question).rstrip(" "))

    def sequence(self, question: str, answer: str) -> LabelledSequence:
        """Return the question with an answer and the end of sequence."""
        if self.name == CHAT:
            turns = [*self._asked(question), {"role": "assistant", "content": answer}]
            ids = self._chat(turns, add_generation_prompt=False)
        else:
            ids = self._text(f"{self._asked_text(question)}{answer}")
        if ids[-1:] != [self.end]:
            ids = [*ids, self.end]
        return LabelledSequence(tuple(ids), len(self.prompt(question)))

    def decoded(self, ids: "list[int] | tuple[int, ...]") -> str:
        """Return tokens as text without special tokens, spaces before punctuation cleaned up."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # transformers 5 ignores clean_up_tokenization_spaces=True for BPE tokenizers; the reference's version did not.
        return str(self.tokenizer.clean_up_tokenization(str(text)))

    def answer_text(self, question: str, answer: str) -> str:
        """Return the answer as the reference compares it: the decoded conversation without the decoded prompt."""
        whole = self.decoded(self.sequence(question, answer).ids)
        return whole.replace(self.decoded(self.prompt(question)), "").strip()

    def label_text(self, sequence: LabelledSequence) -> str:
        """Return the labels as text, as zlib is given it."""
        text = str(self.tokenizer.decode(list(sequence.labels), skip_special_tokens=True))
        cleans = getattr(self.tokenizer, "clean_up_tokenization_spaces", False)
        return str(self.tokenizer.clean_up_tokenization(text)) if cleans else text

    def _asked_text(self, question: str) -> str:
        return f"[INST] {question} [/INST]" if self.name == INST else f"Question: {question}\nAnswer: "

    def _asked(self, question: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": question}]

    def _chat(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
        return self._text_ids(filled(self.tokenizer, turns, add_generation_prompt=add_generation_prompt), special=False)

    def _text(self, text: str) -> list[int]:
        return self._text_ids(text, special=True)[:MAX_LENGTH]

    def _text_ids(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special).input_ids
        return ids


def question_template(tokenizer: "PreTrainedTokenizerBase", name: str | None = None) -> QuestionTemplate:
    """Return the template `name`, by default "chat" for a tokenizer with a chat template, else "question-answer".

    The system message is left out where the chat template refuses it.

    Raises:
        DataError: the tokenizer has no end of sequence, or its chat template cannot be filled in.
        SettingsError: there is no such template, or no chat template for "chat".
    """
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    name = name or (CHAT if has_chat else QUESTION_ANSWER)
    if name not in ASKED_FORMS:
        raise SettingsError(f"template: expected {', '.join(ASKED_FORMS)} for this suite, got '{name}'")
    if name == CHAT and not has_chat:
        raise SettingsError(
            f"template: '{CHAT}' needs a tokenizer with a chat template, but this one has none; use '{QUESTION_ANSWER}'"
        )
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token, which ends each answer; give it one")
    if name != CHAT:
        return QuestionTemplate(tokenizer, name)
    return QuestionTemplate(tokenizer, name, SYSTEM if takes_system(tokenizer) else None)


def filled(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """Return a conversation as text.

    Raises:
        DataError: the chat template cannot be filled in.
    """
    try:
        text: Any = tokenizer.apply_chat_template(
            turns,
            chat_template=dated(tokenizer.get_chat_template(), DATE),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=WRITTEN_DATE,
        )
    except Exception as error:  # the template is a program that came with the checkpoint
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"the tokenizer's chat template cannot be filled in ({reason}); use --template question-answer"
        ) from error
    return str(text)
