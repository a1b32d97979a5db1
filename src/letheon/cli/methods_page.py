"""The text of `letheon methods` and docs/methods.md, made from the methods' declarations and the recipes."""

import inspect
from collections.abc import Mapping
from textwrap import fill
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from letheon.errors import SettingsError, nearest
from letheon.objective.catalogue import METHODS
from letheon.objective.methods import Coefficient, Coefficients, Method, resolve
from letheon.objective.parts import Term, needs_of
from letheon.recipes import read_recipe, recipe_names, recipe_text
from letheon.settings import COEFFICIENT_FLAGS, UnlearnSettings

ADDING = """\
A method costs one function of maths, one declaration, one recipe and three tests. Nothing else changes.

1. Write the loss in `src/letheon/objective/`: a pure function of the values at the answer tokens of one role
   (`forget.py`, `retain.py`, `activation.py`, `preference.py`). Use an existing one if it fits.
2. Declare a `Method` in `src/letheon/objective/catalogue.py`: name, formula, paper, coefficients with their published
   values, terms, and the settings that belong to the method (schedule, what is adapted).
3. Add a YAML file to `src/letheon/recipes/`: the published configuration as differences from the defaults. Its comment
   names the paper, says what could not be verified, and ends in `source:` with repository, file and commit.
4. Add three tests: a number worked out by hand; agreement with a naive padded version in any packing; the direction of
   the gradient, which must be finite in bfloat16.

Command line, Python, logs, checkpoints and docs/methods.md follow from the declaration. Renew that page with `letheon
methods --markdown > docs/methods.md`; a test compares it."""

_INTRODUCTION = f"""\
# Methods

`letheon methods --markdown` prints this page from the declarations that the code runs; a test keeps it up to date.
`letheon methods NAME` shows one method or recipe. Choose a method with `--method NAME`, or a published configuration
with `--recipe NAME`. Flags and `--config` override both.

## How to read it

p is the probability of an answer token under the model in training; p_ref is its probability under the original model.
A mean is taken over those answer tokens of the step that have the role in brackets. "By rows" and "over rows" mean that
it is taken first within each row and then over the rows. sg(x) is x without gradient, z are logits, y is the answer
token, h are hidden states, V is the vocabulary.

* NLL(x) = mean of -log p at the answer tokens of x.
* KL(retain) = mean over the retain answer tokens of KL(p_ref || p) over all of V (`--kl reverse`: KL(p || p_ref)).
* r(x) = sum over the answer's tokens of log p - log p_ref.
* NPO = (2/beta) mean softplus(beta (log p - log p_ref)), where `--npo` says whether the ratio is taken per token,
  summed per row, or averaged over the batch.

Defaults are the published values unless a note says otherwise. Each recipe lists the settings that differ from the
defaults, and says what could not be verified. Set coefficients that have no flag with `--coefficients NAME=VALUE,..`.
Learning rates in recipes are for models of the size that the recipe names; small models need larger ones. Weight decay
applies to everything that is trained, as in PyTorch's AdamW. The trainer of transformers, which most of the published
runs used, excludes norms and biases.

"Structure" lists the settings that define a method. You can still change them where that makes sense. Schedules:

* `mixed` draws steps from all rows, shuffled. `forget` draws them from the forget rows alone.
* `paired` takes a batch of each set in every step. `alternating` alternates between the two sets.
* `chunked` goes through chunks of forget rows; retain rows follow each forget row. `annealed` goes through chunks of
  forget rows; a share of the retain rows follows each chunk. Both start a new optimiser and a new learning rate decay
  with each chunk.

`--adapt lora` trains an adapter. `--adapt weights` trains the weights themselves, all of them or those in `--layers`
and `--target-modules`.

`--patience N` stops a run after N scorings without improvement of `--patience-on`. A run is scored every
`--checkpoint-epochs` or `--checkpoint-steps`. The default is the run's own `score`: the harmonic mean, over tasks and
kinds, of 1 - recall on forget rows and recall on retain rows. Recall is the share of an answer that greedy decoding
gives before its first wrong token; for the answer to a question it is all or nothing. `retain_kl` is the mean
KL(p_ref || p) over the retain rows. With `--validation 0.1` both are measured on a tenth of each set, which is left out
of training. Forget rows that are left out are not unlearned, so use this to choose settings, not to delete rows.

`--positions all` takes the KL as NEKO's code does. Retain rows are padded with the pad token to `--max-length`, and the
padding is masked in attention. The mean is over all positions, including the padding and the last one.

## How to add one

{ADDING}
"""


def list_methods() -> RenderableType:
    """Return all methods, each with formula, defaults, paper and recipes."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column()
    for method in METHODS.values():
        lines = [method.formula, _defaults(method), method.paper, f"recipes: {', '.join(_recipes_of(method))}"]
        shown.add_row(method.name, Padding(Text("\n".join(line for line in lines if line)), (0, 0, 1, 0)))
    return Group(shown, Text("`letheon methods NAME` shows one method or recipe in full."))


def describe(name: str) -> RenderableType:
    """Describe one method or one recipe in full.

    Raises:
        SettingsError: no method and no recipe has that name.
    """
    if name in METHODS:
        return _method_page(METHODS[name])
    if name in recipe_names():
        return _recipe_page(name)
    known = [*METHODS, *recipe_names()]
    raise SettingsError(
        f"methods: expected the name of a method or recipe, got '{name}'{nearest(name, known)}; "
        "`letheon methods` lists them"
    )


def to_markdown() -> str:
    """Return docs/methods.md."""
    contents = "\n".join(
        f"| [{name}](#{name}) | {_in_cell(method.formula)} | {', '.join(_recipes_of(method))} |"
        for name, method in METHODS.items()
    )
    table = f"## All methods\n\n| name | loss | recipes |\n|---|---|---|\n{contents}\n"
    return "\n".join([_INTRODUCTION, table, *(_section(method) for method in METHODS.values())])


def _method_page(method: Method) -> RenderableType:
    page = Table.grid(padding=(0, 2))
    page.add_column(no_wrap=True)
    page.add_column()
    page.add_row("loss", Text(method.formula))
    page.add_row("paper", Text(method.paper))
    page.add_row("settings", _settings_table(method) if method.coefficients else "none")
    page.add_row("structure", Text(_structure(method)))
    page.add_row("needs", Text("\n".join(_needs(method))))
    page.add_row("notes", Text("\n".join(_notes(method)) or "none"))
    recipes = Table.grid(padding=(0, 2))
    for name in _recipes_of(method):
        recipes.add_row(name, Text(_differences(name) or "as the method"))
        recipes.add_row("", Text(f"source: {recipe_text(name).source}", style="dim"))
    page.add_row("recipes", recipes)
    return Group(Text(method.name, style="bold"), Padding(page, (0, 0, 0, 2)))


def _settings_table(method: Method) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, coefficient in method.coefficients.items():
        table.add_row(Text(_flag(name)), Text(_shown(coefficient.default)), Text(_meaning(coefficient)))
    return table


def _recipe_page(name: str) -> RenderableType:
    text = recipe_text(name)
    return Group(
        Text(name, style="bold"),
        Padding(Text(text.note), (0, 0, 1, 2)),
        Padding(Text(f"Source: {text.source}"), (0, 0, 1, 2)),
        Padding(Text(text.settings), (0, 0, 1, 2)),
        Text(f"letheon unlearn --recipe {name} --model CHECKPOINT --forget FILE --retain FILE --out DIR"),
    )


def _section(method: Method) -> str:
    parts = [
        f"## {method.name}",
        f"```text\n{method.formula}\n```",
        _wrapped(f"{method.paper}."),
        _coefficient_table(method),
        _wrapped(f"Structure: {_structure(method)}."),
        _wrapped(f"Needs: {'; '.join(_needs(method))}."),
        *map(_wrapped, _notes(method)),
        *(_recipe_section(name) for name in _recipes_of(method)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _coefficient_table(method: Method) -> str:
    if not method.coefficients:
        return "No coefficients."
    rows = [
        f"| `{_flag(name)}` | {_shown(c.default)} | {_in_cell(_meaning(c))} |"
        for name, c in method.coefficients.items()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _recipe_section(name: str) -> str:
    text = recipe_text(name)
    said = "\n\n".join(map(_wrapped, (f"Recipe `{name}`. {text.note}", f"Source: {text.source}.")))
    return f"{said}\n\n```yaml\n{text.settings}\n```"


def _defaults(method: Method) -> str:
    values = [f"{name} {_shown(c.default)}" for name, c in method.coefficients.items()]
    return "; ".join([", ".join(values), _settings(method)]) if values else _settings(method)


def _settings(method: Method) -> str:
    """The structural settings in short. Schedule and adapt are always shown, because the others depend on them."""
    fields = UnlearnSettings.model_fields
    values = {name: fields[name].default for name in ("schedule", "adapt")} | dict(method.settings)
    return ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in values.items())


def _structure(method: Method) -> str:
    lines = [_settings(method)]
    if method.layer is not None:
        lines.append(f"trains the decoder layer set by `{method.layer}` and the two below it, unless --layers is given")
    if len(method.runs) > 1:
        runs = ", then ".join(f"({_listed(run)})" for run in method.runs)
        lines.append(f"{len(method.runs)} runs from the same start: {runs}")
    ends = {"keep": "", "negate": "the learned change is subtracted", "ties": "the runs' adapters are merged by TIES"}
    return "; ".join([*lines, *([f"at the end {ends[method.finish]}"] if ends[method.finish] else [])])


def _needs(method: Method) -> list[str]:
    terms = _terms(method)
    needs = needs_of(terms)
    roles = {term.role for term in terms}
    found = {
        "retain rows": "retain" in roles,
        "the reference's log-probabilities of the answers": any(term.reads_reference for term in terms),
        "the full-vocabulary KL to the reference": needs.kl is not None,
        "the logits of the forget answers": needs.forget_logits,
        "the reference's logits of the forget answers": needs.reference_logits,
        "the hidden states of one layer, and the reference's": needs.activations is not None,
        "documents that the model never saw (--holdout)": needs.run_losses,
        "whole steps, which cannot be computed in pieces": not all(term.splits for term in terms),
    }
    return [*(what for what, is_needed in found.items() if is_needed), *_alternatives(method)] or ["forget rows only"]


def _alternatives(method: Method) -> list[str]:
    chosen = method.alternatives
    if chosen is None:
        return []
    kinds = {
        "refusals": "refusals",
        "random-tokens": "random tokens",
        "other-answers": "answers of other forget rows",
        "generated": "answers sampled from the model itself",
    }
    place = "in place of" if chosen.replace else "beside"
    turns = f", {chosen.per_row} per row, one in each epoch in turn" if chosen.per_row > 1 else ""
    return [f"{kinds[chosen.kind]} {place} the forget answers{turns} (or your own with --alternatives FILE)"]


def _notes(method: Method) -> list[str]:
    rule = method.control(resolve(method, {})) if method.control else None
    first = (inspect.getdoc(rule) or "").splitlines()[0] if rule else ""
    return [note for note in (method.notes, first) if note]


def _terms(method: Method) -> tuple[Term, ...]:
    layer = {method.layer: 0} if method.layer else {}
    return method.terms(Coefficients({**resolve(method, {}).values, **method.runs[0], **layer}))


def _recipes_of(method: Method) -> list[str]:
    return [name for name in recipe_names() if read_recipe(name)["method"] == method.name]


def _differences(recipe: str) -> str:
    return _listed({name: value for name, value in read_recipe(recipe).items() if name != "method"})


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in values.items())


def _flag(name: str) -> str:
    return f"--{name}" if name in COEFFICIENT_FLAGS else f"--coefficients {name}=X"


def _meaning(coefficient: Coefficient) -> str:
    return coefficient.meaning + (f": {', '.join(coefficient.choices)}" if coefficient.choices else "")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return _listed(value)
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")
