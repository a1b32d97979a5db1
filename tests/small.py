"""Small models for tests."""

import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from letheon.model.architectures import new_model


def tiny_model(architecture: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> PreTrainedModel:
    """Return a random model of two layers and width 32, its weights large enough that predictions differ."""
    made = new_model(
        architecture, tokenizer=tokenizer, width=32, num_layers=2, num_heads=4, intermediate=64, context=256, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    made.eval()
    return made


def tiny_bert(vocab_size: int, *, is_decoder: bool = False) -> BertLMHeadModel:
    """Return a random BERT, which sees the words after a masked one unless it is a decoder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        is_decoder=is_decoder,
    )  # fmt: skip
    return BertLMHeadModel(config)
