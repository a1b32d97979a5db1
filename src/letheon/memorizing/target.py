"""`letheon memorize`: from files of rows to a checkpoint that says them by heart."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.ends import bare_rows
from letheon.data.forms import check_form
from letheon.data.rows import Rows, read_rows, read_text
from letheon.data.system_message import suite_form, under_system
from letheon.devices import check_device
from letheon.errors import OutputError, SettingsError
from letheon.memorizing.memorize import MemorizeProgress, MemorizeReport, memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.adapters import LoraSettings
from letheon.model.architectures import new_model, train_tokenizer
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.loading import load_config, load_model, load_tokenizer, move_model, save_model
from letheon.model.quantised import check_not_quantised
from letheon.model.targets import ALL_LINEAR
from letheon.processes import here, in_turn, on_first
from letheon.settings import MemorizeSettings
from letheon.signals import finishing
from letheon.storage.files import open_folder_outside
from letheon.storage.provenance import describe_environment
from letheon.storage.run_folder import MEMORIZE_FILE, write_json_entry

_OF_NEW_MODEL = frozenset({"architecture", "vocab_size", "width", "num_layers", "num_heads", "context"})
_OF_LORA = frozenset({"rank", "alpha"})


def make_target(
    settings: MemorizeSettings,
    *,
    progress: Callable[[MemorizeProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> MemorizeReport:
    """Train a checkpoint, or a new model, until it has memorised rows, and leave it in `settings.out`.

    Raises:
        DataError: rows or text are not usable.
        ModelError: the architecture, checkpoint or tokenizer cannot be used.
        OutputError: the checkpoint cannot be written.
        SettingsError: settings contradict each other.
    """
    sets, text = in_turn(lambda: _read(settings, note))
    model, tokenizer = _model_and_tokenizer(settings, sets, text)
    options = MemorizeOptions(
        target_accuracy=settings.target_accuracy,
        max_steps=settings.max_steps,
        text_every=settings.text_every,
        batch_tokens=settings.batch_tokens,
        learning_rate=settings.learning_rate,
        time_limit_s=settings.time_limit_s,
        seed=settings.seed,
    )
    template = _form(settings, tokenizer)
    bare = [bare_rows(rows, tokenizer, note=note) for rows in sets]
    asked = bare if settings.suite is None else [under_system(rows, tokenizer, template) for rows in bare]
    report = memorize(
        model,
        tokenizer,
        rows=[row for rows in asked for row in rows],
        text=text,
        template=template,
        date=settings.date,
        options=options,
        adapter=_lora_settings(settings),
        modules=settings.target_modules or (),
        progress=progress,
    )
    facts = {"settings": settings.plain(), "report": asdict(report), **describe_environment()}

    def write() -> None:
        with finishing():
            save_model(model, tokenizer, settings.out)
            write_json_entry(settings.out, MEMORIZE_FILE, facts)

    on_first(write)
    return report


def _read(settings: MemorizeSettings, note: Callable[[str], None] | None) -> tuple[list[Rows], list[str]]:
    """Check what can be checked without a model, make the folder, and return the sets of rows and the text."""
    check_form(settings.template)
    _check_makes_new(settings)
    _check_adapter(settings)
    sets = [read_rows(s, fields=settings.fields, turns=settings.turns, note=note) for s in settings.rows]
    text = read_text(settings.text) if settings.text else []
    check_device(settings.device)
    if settings.model is not None:
        check_checkpoint(settings.model)
        check_not_quantised(load_config(settings.model), source=settings.model)
    if here().is_first:
        if settings.out.is_dir() and any(settings.out.iterdir()):
            raise OutputError(
                f"{settings.out}: already holds files that a checkpoint would replace; choose another --out"
            )
        open_folder_outside(settings.model, settings.out, advice="choose another --out")
    return sets, text


def _form(settings: MemorizeSettings, tokenizer: PreTrainedTokenizerBase) -> str:
    """The form to learn the rows in: the one given, or the one in which the suite asks them."""
    if settings.suite is None or "template" in settings.model_fields_set:
        return settings.template
    return suite_form(tokenizer)


def _model_and_tokenizer(
    settings: MemorizeSettings, sets: Sequence[Rows], text: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the checkpoint to go on from, or make a new model, with a tokenizer trained on rows and text unless one is
    given."""
    if settings.model is not None:
        loaded = load_model(settings.model, tokenizer=settings.tokenizer, device=settings.device)
        return loaded.model, loaded.tokenizer
    said = (" ".join([*(turn.text for turn in row.turns), row.prompt, row.answer]) for rows in sets for row in rows)
    texts = [*said, *text]
    tokenizer = (
        load_tokenizer(settings.tokenizer)
        if settings.tokenizer
        else train_tokenizer(texts, vocab_size=settings.vocab_size)
    )
    model = new_model(
        settings.architecture,
        tokenizer=tokenizer,
        width=settings.width,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        context=settings.context,
        seed=settings.seed,
    )
    move_model(model, settings.device)
    return model, tokenizer


def _check_makes_new(settings: MemorizeSettings) -> None:
    """Refuse what says how a new model is made where none is."""
    given = settings.model_fields_set
    if settings.model is not None and (idle := sorted(given & _OF_NEW_MODEL)):
        raise SettingsError(
            f"{', '.join(idle)}: only for a new model, but --model {settings.model} is given; leave out one of them"
        )
    if settings.tokenizer is not None and "vocab_size" in given:
        raise SettingsError("vocab_size: only for a new tokenizer, but --tokenizer is given; leave out one of them")
    if settings.text is None and "text_every" in given:
        raise SettingsError("text_every: has no effect without --text; leave it out, or set --text too")


def _check_adapter(settings: MemorizeSettings) -> None:
    """Refuse an adapter on a model that knows nothing yet, and the settings of one where there is none."""
    given = settings.model_fields_set
    if settings.model is None and (settings.adapt == "lora" or "target_modules" in given):
        name = "adapt" if settings.adapt == "lora" else "target_modules"
        raise SettingsError(
            f"{name}: a new model has random weights, of which all must be trained; leave it out, or give a "
            f"checkpoint by --model"
        )
    if settings.adapt != "lora" and (idle := sorted(given & _OF_LORA)):
        raise SettingsError(f"{', '.join(idle)}: no effect without --adapt lora; leave it out, or set --adapt lora too")


def _lora_settings(settings: MemorizeSettings) -> LoraSettings | None:
    if settings.adapt != "lora":
        return None
    return LoraSettings(rank=settings.rank, alpha=settings.alpha, targets=settings.target_modules or (ALL_LINEAR,))
