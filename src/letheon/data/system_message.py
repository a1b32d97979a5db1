"""The system message under which suites of questions ask chat models, so that runs on their rows train under it too."""

from dataclasses import replace
from typing import TYPE_CHECKING

from letheon.data.forms import AUTO, CHAT, dated
from letheon.data.rows import Rows, Turn
from letheon.settings.suites import SUITE_DATE, SUITE_FORMS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "You are a helpful assistant."
DATE = SUITE_DATE


def takes_system(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer has a chat template that can be filled in with a system message."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "?"}]
    try:
        template = dated(tokenizer.get_chat_template(), DATE)
        tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    except Exception:  # the template is a program that came with the checkpoint, and raises what it likes
        return False
    return True


def suite_form(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the form in which suites of questions ask a model with this tokenizer."""
    chat, text = SUITE_FORMS
    return chat if getattr(tokenizer, "chat_template", None) else text


def under_system(rows: Rows, tokenizer: "PreTrainedTokenizerBase", template: str | None) -> Rows:
    """Return rows whose conversations begin with the system message, as a suite asks them.

    Rows stay as they are in a text form, and where the tokenizer's chat template takes no system message. `template` is
    a form, or None where it is not known.
    """
    if template not in (None, AUTO, CHAT) or not takes_system(tokenizer):
        return rows
    system = Turn("system", SYSTEM)
    return replace(rows, rows=tuple(replace(row, turns=(system, *row.turns)) for row in rows))
