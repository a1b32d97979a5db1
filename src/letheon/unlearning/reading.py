"""What a run reads and checks before its model is loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from letheon.data.forms import check_form
from letheon.data.rows import Rows
from letheon.devices import check_device
from letheon.errors import SettingsError
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.layers import layers_in
from letheon.model.loading import check_vocabulary, load_config, stored_dtype
from letheon.model.precision import Choice, choose_precision
from letheon.model.quantised import check_quantisation, described
from letheon.model.shard_loading import check_sharding
from letheon.objective.catalogue import get_method
from letheon.objective.methods import Method
from letheon.settings import UnlearnSettings
from letheon.storage.files import check_output_folder
from letheon.training.tracking import check_trackers
from letheon.unlearning.dial.turn import few_documents
from letheon.unlearning.folder import recorded_dtype
from letheon.unlearning.formed_rows import check_answers
from letheon.unlearning.inputs import Inputs, read_inputs
from letheon.unlearning.planning import Planned, check_fit, check_targets, plan_with_rates
from letheon.unlearning.resolve import REFUSAL, build_schedule, resolve_end, resolve_settings
from letheon.unlearning.scoring_steps import check_score_at


def plan(settings: UnlearnSettings, *, note: Callable[[str], None] | None = None) -> Planned:
    """Return what a run would need, without loading weights or writing anything; `note` hears of the rows.

    Raises:
        LetheonError: whatever in settings, rows or checkpoint stands in the way of the run.
    """
    settings, inputs = read(settings, get_method(settings.method), note=note)
    return plan_with_rates(settings, inputs)


def check(settings: UnlearnSettings) -> None:
    """Check of a run all that can be checked without loading weights or writing anything.

    Raises:
        LetheonError: whatever in settings, rows or checkpoint stands in the way of the run.
    """
    settings, inputs = read(settings, get_method(settings.method))
    check_fit(settings, inputs, note=lambda _: None)


def read(
    settings: UnlearnSettings, method: Method, *, note: Callable[[str], None] | None = None
) -> tuple[UnlearnSettings, Inputs]:
    """Return the settings in full, and the rows, all checked that can be checked without the weights.

    Raises:
        LetheonError: whatever in settings, rows or checkpoint stands in the way of the run.
    """
    asked = settings
    settings = resolve_settings(settings)
    check_form(settings.template)
    check_trackers(settings.trackers)
    check_device(settings.device)
    _check_cache(settings.cache_dir)
    check_checkpoint(settings.model)
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code)
    check_quantisation(config, source=settings.model, quantise=settings.quantise, adapt=settings.adapt)
    if settings.shard:
        check_sharding(config, dtype=settings.dtype, quantise=settings.quantise, adapt=settings.adapt)
    settings = settings.model_copy(update={"dtype": precision_of(settings).precision})
    settings = _choose_layer(settings, method)
    warnings = target_warnings(settings, note=note)
    inputs = read_inputs(settings, note=note)
    settings, untaught = _without_refusals(settings, inputs.forget, note=note)
    inputs = replace(inputs, warnings=(*warnings, *untaught, *warnings_of_dial(settings, inputs, note=note)))
    check_vocabulary(config, inputs.tokenizer, source=settings.model)
    check_answers(inputs, settings)
    if asked.learning_rate == "auto" and settings.learning_rate != "auto" and note is not None:
        note(
            f"learning rate {settings.learning_rate:g}, since runs of method '{method.name}' cannot find their own; it "
            f"is meant for adapters of 7B models, so set --learning-rate for others"
        )
    settings = resolve_end(asked, settings, inputs.forget, inputs.retain)
    check_score_at(settings, build_schedule(settings, inputs.forget, inputs.retain))
    return settings, inputs


def _without_refusals(
    settings: UnlearnSettings, forget: Rows, *, note: Callable[[str], None] | None
) -> tuple[UnlearnSettings, tuple[str, ...]]:
    """Return the settings without a refusal where no forget row has a prompt, and what `note` hears of that.

    The model would learn to say it when it is given nothing.
    """
    if settings.instead != REFUSAL or not all(row.is_document for row in forget):
        return settings, ()
    said = "no refusal is taught: the forget rows are plain documents, which have no prompt to refuse"
    if note is not None:
        note(said)
    return settings.model_copy(update={"instead": None}), (said,)


def precision_of(settings: UnlearnSettings) -> Choice:
    """Return the precision of a run, chosen by checkpoint and machine; a resumed run keeps its own.

    Raises:
        ModelError: the checkpoint cannot be read.
    """
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code)
    stored = stored_dtype(settings.model, config)
    was = recorded_dtype(settings.out) if settings.resume else None
    chosen = choose_precision(stored, asked=settings.dtype, device=settings.device, was=was, is_sharded=settings.shard)
    return replace(chosen, line=f"{chosen.line}{described(config, settings.quantise)}")


def _choose_layer(settings: UnlearnSettings, method: Method) -> UnlearnSettings:
    """Settle which decoder layer a method looks at, and train it and the two below it unless told otherwise.

    RMU's authors take layer 7 of 32 (arXiv 2403.03218); the same share of the depth is taken here, not below layer 2.

    Raises:
        SettingsError: a layer is not one of the model's.
    """
    if method.layer is None and settings.layers is None:
        return settings
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code).get_text_config()
    num_layers = int(config.num_hidden_layers)
    if settings.layers is not None:
        layers_in(settings.layers, num_layers)  # a span that names none is said before weights are loaded
    if method.layer is None:
        return settings
    given = (settings.coefficients or {})[method.layer]
    layer = min(max(round(num_layers * 7 / 32), 2), num_layers - 1) if given == "auto" else int(float(given))
    if layer >= num_layers or (given != "auto" and layer != float(given)):
        raise SettingsError(f"{method.layer}: expected a layer of the model, 0 to {num_layers - 1}, got {given}")
    coefficients = {**(settings.coefficients or {}), method.layer: float(layer)}
    layers = settings.layers or f"{max(layer - 2, 0)}:{layer + 1}"
    return settings.model_copy(update={"coefficients": coefficients, "layers": layers})


def target_warnings(settings: UnlearnSettings, *, note: Callable[[str], None] | None = None) -> tuple[str, ...]:
    """Check the trained parts of the model, and return the warnings, which go to `note` too.

    Raises:
        LetheonError: as `check_targets`.
    """
    found = list[str]()

    def hear(message: str) -> None:
        found.append(message)
        if note is not None:
            note(message)

    check_targets(settings, note=hear)
    return tuple(found)


def warnings_of_dial(
    settings: UnlearnSettings, inputs: Inputs, *, note: Callable[[str], None] | None = None
) -> tuple[str, ...]:
    """Return what a run's dial warns of, which `note` hears too."""
    found = few_documents(settings, inputs.halves)
    for message in found:
        if note is not None:
            note(message)
    return found


def _check_cache(folder: Path | None) -> None:
    if folder is None:
        return
    check_output_folder(folder, what="a folder for reference stores", advice="choose another --cache-dir")
