"""Prompts to tokens, and the precision in which text encoders read them."""

import contextlib
from collections.abc import Sequence

import torch
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from diffgan.errors import UserError


def padded_tokens(tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int) -> BatchEncoding:
    """`input_ids` and `attention_mask` of prompts, (N, length) int64 each, padded or truncated."""
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")


def truncated(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int | None = None) -> list[bool]:
    """For each prompt, whether it has more than `length` tokens, by default as many as the tokenizer allows."""
    tokens = tokenizer(list(prompts), verbose=False).input_ids
    return [len(row) > (length or tokenizer.model_max_length) for row in tokens]


def own_precision(encoder: PreTrainedModel) -> contextlib.AbstractContextManager:
    """No autocast for a text encoder in a lower precision: it has no layer norm of mixed precisions on CPUs."""
    if encoder.dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(encoder.device.type, enabled=False)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, text_config: PreTrainedConfig) -> None:
    """Check that a text encoder has an embedding for all that a tokenizer makes.

    Args:
        tokenizer: of a pipeline.
        text_config: of its text encoder. T5 has relative positions: any number of tokens.

    Raises:
        UserError: a token or a position has no embedding.
    """
    tokens, positions = text_config.vocab_size, getattr(text_config, "max_position_embeddings", None)
    last, length = max(tokenizer.get_vocab().values(), default=0), tokenizer.model_max_length
    if not 0 <= last < tokens:
        raise UserError(f"tokenizer: has token number {last}, but its text encoder has {tokens} tokens")
    if not length >= 2 or (positions is not None and length > positions):
        known = "any number of" if positions is None else positions
        raise UserError(f"tokenizer: model_max_length is {length}, but its text encoder has {known} positions")
