"""What was trained, merged into the model in memory."""

from typing import Any

import torch

from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter, plain_name
from letheon.model.widening import as_stored


@torch.no_grad()
def take_saved_weights(adapted: Adapted) -> None:
    """Give the model in memory the weights that it is saved with: what was trained merged, and rounded as on disk.

    With the adapter off the model then computes what the saved checkpoint computes. The original weights are gone.

    Raises:
        ModelError: a layer's adapter cannot be merged.
    """
    own = {plain_name(name): value for name, value in adapted.model.state_dict(keep_vars=True).items()}
    for name, value in as_stored(adapted.model, adapted.merged_state()).items():
        if value.data_ptr() != own[name].data_ptr():
            own[name].copy_(value)


@torch.no_grad()
def fold_in(adapted: LoraAdapter) -> None:
    """Merge the adapter into the weights and take its layers out of the model, which is an ordinary one again.

    All weights can then be trained. `adapted` must not be used any more.

    Raises:
        ModelError: a layer's adapter cannot be merged.
    """
    take_saved_weights(adapted)
    base: Any = adapted.peft.base_model
    base.unload()
    adapted.model.requires_grad_(True)
