"""Setting the dial of a model: W + s (alpha / rank) B A of an adapter, W + s (W' - W) of trained weights.

The scale of an adapter is a factor on its alpha. A and B stay as they were trained, so scale 1 gives the trained state
back to the bit, and PEFT applies the scale when it loads the adapter.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from letheon.engine.population import PopulationAdapter
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter
from letheon.model.loading import load_model
from letheon.model.weights import TrainedWeights
from letheon.settings import UnlearnSettings

SetScale = Callable[[float], None]


def scaling_of(adapted: Adapted, settings: UnlearnSettings) -> SetScale:
    """Return what sets the scale of a model whose present state is that of scale 1.

    Trained weights and the original ones, which are loaded for this once more, are held in memory while it exists.

    Raises:
        ModelError: the original weights cannot be loaded.
    """
    if isinstance(adapted, TrainedWeights):
        return _scaling_of_weights(adapted, original_weights(adapted, settings))
    assert isinstance(adapted, LoraAdapter | PopulationAdapter), "no other kind is trained"
    return adapted.set_scale


def original_weights(adapted: TrainedWeights, settings: UnlearnSettings) -> dict[str, Tensor]:
    """Return the trained weights as they were before training, float32, by name."""
    loaded = load_model(
        settings.model,
        dtype=settings.dtype,
        tokenizer=settings.tokenizer,
        device="cpu",
        trust_remote_code=settings.trust_remote_code,
    )
    named = dict(loaded.model.named_parameters())
    return {name: named[name].detach().float() for name in adapted.exact}


def _scaling_of_weights(adapted: TrainedWeights, original: Mapping[str, Tensor]) -> SetScale:
    for parameter in adapted.parameters():
        parameter.grad = None
    trained = {name: value.cpu().clone() for name, value in adapted.trained().items()}

    @torch.no_grad()
    def set_scale(scale: float) -> None:
        """Set the weights to W + s (W' - W), at scale 1 to W' itself."""
        for name, parameter in adapted.exact.items():
            exact = trained[name] if scale == 1 else torch.lerp(original[name], trained[name], scale)
            parameter.copy_(exact)
        adapted.update_model()

    return set_scale
