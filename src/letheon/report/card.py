"""The cards that lie beside an unlearned checkpoint and an adapter: README.md with Hugging Face's front matter."""

import re
import shlex
from collections.abc import Mapping

import yaml

from letheon.report.files import flat_items
from letheon.report.shareable import PLACES, shareable_provenance, shareable_settings, shareable_text
from letheon.report.tables import compare, to_markdown
from letheon.report.text import to_markdown_text, visible_line
from letheon.report.verdict import CUT_SHORT, SHORT_OF_GOALS, attacks_in, membership_reading
from letheon.scores.results import Results
from letheon.scores.score import SHARE, shown_of
from letheon.storage.hub import is_hub_id


def model_card(
    *,
    settings: Mapping[str, object],
    provenance: Mapping[str, object],
    results: Results | None,
    doubt: str | None = None,
    show_paths: bool = False,
) -> str:
    """Return the Markdown of a model card: how the model was made, from what, how it scores, what that does not mean.

    `settings` are the run's resolved settings (run.yaml), `provenance` its provenance.json, `results` the evaluation
    after unlearning; None says in the card that there was none, and `doubt` why an evaluation is not, or may not be, of
    this model. Paths, the command line and the machine are left out unless `show_paths`: the card goes where the model
    goes. The same input gives the same text.
    """
    if not show_paths:
        doubt = None if doubt is None else shareable_text(doubt, settings=settings)
        provenance = shareable_provenance(provenance, settings=settings)
        settings = shareable_settings(settings)
    sections = (
        _front_matter(settings, library="transformers"),
        _introduction(settings, provenance),
        _data(settings, results),
        _scores(results, doubt),
        _reproduction(settings, provenance),
        _LIMITS,
    )
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def adapter_card(*, settings: Mapping[str, object], provenance: Mapping[str, object], show_paths: bool = False) -> str:
    """Return the Markdown of the card of a run's adapter, from what `model_card` takes."""
    if not show_paths:
        provenance = shareable_provenance(provenance, settings=settings)
        settings = shareable_settings(settings)
    introduction = (
        f"# What was changed in {_name_of(settings)}\n\n"
        f"The low-rank adapter that Letheon trained with the method **{_method_of(settings)}**. The card of the merged "
        "model has the scores. With the model before unlearning beside it, the adapter tells what was to be forgotten: "
        f"publish the merged model rather than this.\n\n{_code_block(_LOADING, 'python')}"
    )
    sections = (
        _front_matter(settings, library="peft"),
        introduction,
        f"## Method\n\n{_settings_table(settings)}",
        _reproduction(settings, provenance),
    )
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def _front_matter(settings: Mapping[str, object], *, library: str) -> str:
    model = str(settings.get("model", ""))
    matter: dict[str, object] = {"library_name": library, "tags": ["unlearning", "letheon"]}
    # The hub refuses a card whose base_model is not a hub id, so a folder's name is given in the text alone.
    if _is_named(settings) and is_hub_id(model):
        matter = {"base_model": model, **matter}
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---"


def _introduction(settings: Mapping[str, object], provenance: Mapping[str, object]) -> str:
    method, table = _method_of(settings), _settings_table(settings)
    return (
        f"# An unlearned version of {_name_of(settings)}\n\n"
        f"{_what_was_done(provenance)} with the method **{method}** of Letheon. It has the architecture and the "
        "tokenizer of its base model, and "
        f"the base model's licence and limits apply to it.\n\n## Method\n\n{table}"
    )


def _what_was_done(provenance: Mapping[str, object]) -> str:
    result = provenance.get("result")
    steps, reason = (result.get("num_steps"), str(result.get("reason"))) if isinstance(result, Mapping) else (None, "")
    aim = "to forget some of the rows that its base model had learned, and to keep the rest,"
    if steps == 0:
        return f"**Nothing was trained**: this checkpoint is its base model saved again. A run of 0 steps was {aim}"
    if reason.startswith(CUT_SHORT):
        why = to_markdown_text(reason)
        return f"**Training was ended early** ({why}, after {steps} steps): it had begun {aim}"
    if reason.startswith(SHORT_OF_GOALS):
        return f"**Training {to_markdown_text(reason)}**: it was {aim}"
    return f"This checkpoint was trained {aim}"


def _method_of(settings: Mapping[str, object]) -> str:
    return to_markdown_text(str(settings.get("method", "an unlearning method")))


def _is_named(settings: Mapping[str, object]) -> bool:
    return settings.get("model") not in (None, "MODEL")


def _name_of(settings: Mapping[str, object]) -> str:
    return to_markdown_text(str(settings["model"])) if _is_named(settings) else "a causal language model"


def _settings_table(settings: Mapping[str, object]) -> str:
    listed = "\n".join(
        f"| {to_markdown_text(name)} | {to_markdown_text(value)} |"
        for name, value in flat_items({k: v for k, v in settings.items() if k not in PLACES and v is not None})
    )
    return f"| setting | value |\n| --- | --- |\n{listed}" if listed else "No settings were kept."


def _data(settings: Mapping[str, object], results: Results | None) -> str:
    lines = []
    for name, meaning in (("forget", "to forget"), ("retain", "to keep")):
        found = settings.get(name, "not recorded")
        source = "not named here" if found == name.upper() else to_markdown_text(str(found))
        scored = results.num_rows.get(name) if results else None
        counts = f" ({' and '.join(f'{number} {kind}' for kind, number in scored.items())} scored)" if scored else ""
        lines.append(f"- Rows {meaning}: {source}{counts}")
    return "## Data\n\n" + "\n".join(lines)


def _scores(results: Results | None, doubt: str | None) -> str:
    said = f"\n\n**{to_markdown_text(doubt)}**" if doubt else ""
    if results is None and doubt:
        return f"## Scores{said}"
    if results is None:
        return "## Scores\n\nThe model was not evaluated after unlearning; nothing is known of what it forgot or kept."
    scores = results.scores
    reading = "".join(f"\n{membership_reading(attack)}\n" for attack in attacks_in(scores))
    are_shares = all(score.bounds == SHARE for score in shown_of([scores]))
    between = " All scores lie between 0 and 1." if are_shares else ""
    table = to_markdown(compare({"After unlearning": results}))
    suite = to_markdown_text(results.suite)
    return f"## Scores\n\nSuite: {suite}.{between}{said}\n\n{table}{reading}"


def _reproduction(settings: Mapping[str, object], provenance: Mapping[str, object]) -> str:
    command = provenance.get("command")
    if isinstance(command, list | tuple):
        shown = shlex.join(map(str, command))
    else:
        shown = str(command) if command else _command(settings)
    facts = "\n".join(
        f"- {to_markdown_text(name)}: {to_markdown_text(value)}"
        for name, value in flat_items({k: v for k, v in provenance.items() if k != "command"})
    )
    listed = f"\n\nIt was made with:\n\n{facts}" if facts else ""
    return f"## How to reproduce it\n\n{_code_block(visible_line(shown))}{listed}"


def _command(settings: Mapping[str, object]) -> str:
    flags = [
        part
        for name, value in settings.items()
        if value is not None and value is not False
        for part in (f"--{name.replace('_', '-')}", *(() if value is True else (_flag_value(value),)))
    ]
    return shlex.join(["letheon", "unlearn", *flags])


def _flag_value(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={found}" for name, found in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _code_block(text: str, language: str = "sh") -> str:
    """Fence `text` with more backticks than any run of them in it, so that it cannot end the block."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


_LOADING = """\
from peft import PeftModel
model = PeftModel.from_pretrained(model_before_unlearning, "adapter")"""

_LIMITS = """\
## What this does and does not promise

The scores say what the model writes when asked in the tested ways, with greedy decoding. They do not prove that nothing
of the forgotten rows is left in its weights: rephrased questions, repeated sampling, a little further training or lower
precision may bring some of it back. It is not the model that training without those rows would have given. Text other
than the rows to keep was not protected beyond what the scores above show.
"""
