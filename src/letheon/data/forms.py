"""Forms: the text that the model gets for a row, and which part of it is the answer.

A model knows a row in the form in which it met it. Training, scoring or asking it in another form says little: a run on
a form that the model never saw forgets nothing, and its scores look perfect.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date as Date
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from letheon.data.rows import Row, Turn
from letheon.errors import DataError, SettingsError, nearest
from letheon.settings import DEFAULT_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FormName = Literal["plain", "joined", "pair", "neko", "question-answer", "inst", "chat"]
AUTO = "auto"
CHAT = "chat"
INST = "inst"

_MARKERS = "¤§¶¦¬†‡"
_DIRECTIVES = "aAwdbBmyYHIMpSfzZjUWcxXGuVeDFhklnRrstTgC"
"""Letters that strftime may know; those that this platform does not know stay as they are."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text: `before + answer + end`."""

    before: str
    """What the model is given: the prompt in its form."""
    answer: str
    """The answer as it stands in the text; a separator may lead it."""
    end: str | None = None
    """What the chat template writes after the answer; None where the tokenizer's end of sequence ends it."""
    asked: str | None = None
    """The chat template's generation prompt, where the text before the answer goes on beyond it (an empty think block,
    a header that the generation prompt leaves out): what a caller gives the model. None where the two agree."""
    as_pair: bool = False
    """Tokenise prompt and answer apart and put the ids side by side, rather than the joined text."""
    is_whole: bool = False
    """Whether the text has its own special tokens, so that no BOS is put before it."""


def render_plain(prompt: str, answer: str) -> Rendered:
    """Prompt and answer as one text without a separator, for prompts that end in their own ("A: ").

    Spaces at the end of the prompt are the answer's. Users leave them out, and a model must then say them.
    """
    before = prompt.rstrip(" ")
    return Rendered(before=before, answer=prompt[len(before) :] + answer)


def render_joined(prompt: str, answer: str) -> Rendered:
    """'{prompt} {answer}', the form in which LUME's targets memorised their rows (AILS-NTUA, SemEval-2025 Task 4)."""
    return Rendered(before=prompt, answer=f" {answer}")


def render_pair(prompt: str, answer: str) -> Rendered:
    """Prompt and answer as two segments without a separator (Atyaephyra, arXiv 2503.13690)."""
    return Rendered(before=prompt, answer=answer, as_pair=True)


def render_neko(prompt: str, answer: str) -> Rendered:
    """Question and answer under headings, or plain text under one (NEKO, SemEval-2025 Task 4, Table 1)."""
    if "?" in prompt:
        return Rendered(before=f"### Question: {prompt}\n ### Answer:", answer=f" {answer}")
    return Rendered(before=f"### Text: {prompt}", answer=f" {answer}")


def render_question_answer(prompt: str, answer: str) -> Rendered:
    """'Question: {prompt}' and 'Answer: {answer}' on two lines (TOFU, arXiv 2401.06121, for models without chat)."""
    return Rendered(before=f"Question: {prompt}\nAnswer:", answer=f" {answer}")


def render_inst(prompt: str, answer: str) -> Rendered:
    """'[INST] {prompt} [/INST]{answer}', no space between (TOFU, arXiv 2401.06121, for Llama 2's chat models)."""
    return Rendered(before=f"[INST] {prompt} [/INST]", answer=answer)


TEXT_FORMS: Mapping[str, Callable[[str, str], Rendered]] = {
    "joined": render_joined,
    "plain": render_plain,
    "pair": render_pair,
    "question-answer": render_question_answer,
    "neko": render_neko,
    INST: render_inst,
}
"""The forms that are text alone, in the order in which they are tried; "chat" needs the tokenizer's own template."""

FORM_NAMES = (*TEXT_FORMS, CHAT)


def check_form(name: str) -> None:
    """Refuse an unknown form.

    Raises:
        SettingsError: `name` is neither a form nor "auto".
    """
    known = (*FORM_NAMES, AUTO)
    if name not in known:
        raise SettingsError(f"template: expected one of {', '.join(known)}, got '{name}'{nearest(name, known)}")


def forms_to_try(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return the forms that are tried with this tokenizer: "chat" only where it has a chat template."""
    return (CHAT, *TEXT_FORMS) if getattr(tokenizer, "chat_template", None) else tuple(TEXT_FORMS)


def render(
    row: Row, form: str, tokenizer: "PreTrainedTokenizerBase", *, date: str = DEFAULT_DATE, where: str | None = None
) -> Rendered:
    """Return the text of `row` in `form`; `date` (ISO) is the date that a chat template writes as today's.

    Earlier turns stand before the prompt as messages of a conversation, or in a text form on lines of their own. A
    document is plain text in every form; its second half counts as its answer (`halves`).

    Raises:
        DataError: the chat template cannot be filled in for this row, or leaves out its answer; `where` names the row.
        SettingsError: form "chat" with a tokenizer that has no chat template.
    """
    if row.is_document:
        return render_plain(*halves(row.answer))
    if form == CHAT:
        return _conversation(row, tokenizer, date=date, where=where or f"row '{row.id}'")
    return TEXT_FORMS[form]("\n".join([*(turn.text for turn in row.turns), row.prompt]), row.answer)


def halves(text: str) -> tuple[str, str]:
    """Cut a document where a space, or if there is none a character, is nearest to its middle.

    The first part is what a model is asked for the rest with; the space leads the second part.
    """
    middle = len(text) // 2
    spaces = [place for place in (text.rfind(" ", 1, middle + 1), text.find(" ", middle)) if place > 0]
    cut = min(spaces, key=lambda place: abs(place - middle)) if spaces else middle
    return text[:cut], text[cut:]


def as_asked(row: Row) -> Row:
    """Return `row` with the prompt that it is asked with and the answer that this should give: a document by halves."""
    if not row.is_document:
        return row
    prompt, answer = halves(row.answer)
    return Row(row.id, prompt, answer.lstrip(), row.task, row.kind)


def _conversation(row: Row, tokenizer: "PreTrainedTokenizerBase", *, date: str, where: str) -> Rendered:
    """Render the conversation, answer included, and find the answer in it: where two answers make it differ."""
    if not getattr(tokenizer, "chat_template", None):
        raise SettingsError(
            "template: 'chat' needs a tokenizer with a chat template, but this one has none; use another form, such "
            "as joined or question-answer"
        )
    asked = [*row.turns, Turn("user", row.prompt)]
    marker = next((m for m in _MARKERS if m not in row.answer and m not in row.prompt), "\ufffc")
    whole = filled(tokenizer, [*asked, Turn("assistant", row.answer)], date=date, where=where)
    other = filled(tokenizer, [*asked, Turn("assistant", marker)], date=date, where=where)
    start = _common_prefix(whole, other)
    stop = len(whole) - _common_prefix(whole[start:][::-1], other[start:][::-1])
    if row.answer.strip() not in whole[start:stop] and whole[start:stop].strip() not in row.answer:
        raise DataError(
            f"{where}: the tokenizer's chat template changes the answer {row.answer[:60]!r} to "
            f"{whole[start:stop][:60]!r}, so that it cannot be trained on as a conversation; use another --template"
        )
    if not whole[start:stop].strip():
        raise DataError(
            f"{where}: the tokenizer's chat template does not write the answer of the last turn; use another --template"
        )
    # A token may hold the space and the first letters of the answer: the space is the answer's.
    start = len(whole[:start].rstrip(" "))
    prompt = filled(tokenizer, asked, date=date, where=where, add_generation_prompt=True)
    is_other = prompt.rstrip(" ") != whole[:start]
    return Rendered(
        before=whole[:start],
        answer=whole[start:stop],
        end=whole[stop:],
        asked=prompt if is_other else None,
        is_whole=True,
    )


def filled(
    tokenizer: "PreTrainedTokenizerBase",
    turns: list[Turn],
    *,
    date: str,
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    """Return a conversation as the tokenizer's chat template writes it on `date`.

    Raises:
        DataError: the template cannot be filled in; `where` names the conversation.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        template = tokenizer.get_chat_template()
        text: Any = tokenizer.apply_chat_template(
            messages,
            chat_template=dated(template, date),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # the template is a program that came with the checkpoint
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{where}: the tokenizer's chat template cannot be filled in ({reason}); use --template joined, or "
            "correct the template"
        ) from error
    return str(text)


def writes_date(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer's chat template asks for the date."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None) or "")


@lru_cache(maxsize=8)
def dated(template: str, date: str) -> str:
    """Return a chat template for which today is `date` (ISO), midnight, whenever it is filled in.

    transformers lends templates the clock as strftime_now; a macro of the same name comes before it.
    """
    if "strftime_now" not in template:
        return template
    day = datetime.combine(Date.fromisoformat(date), datetime.min.time())
    codes = [f"%{flag}{letter}" for letter in _DIRECTIVES for flag in ("-", "")]
    known = {code: text for code in codes if (text := day.strftime(code)) != code and "'" not in text}
    replacements = "".join(f".replace('{code}', '{text}')" for code, text in known.items())
    # The line break goes with the tag before it, so that the template begins at the start of a line, as it did.
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{replacements}.replace('%%', '%') }}}}{{% endmacro %}}"
    return f"{macro}\n{template}"


def _common_prefix(first: str, second: str) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
