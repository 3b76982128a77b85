"""Prompts to tokens, and the precision in which text encoders read them."""

import contextlib
from collections.abc import Sequence

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


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
