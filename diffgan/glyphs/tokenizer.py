"""The tokenizer of the glyph teacher: CLIP's byte-pair encoding with the words of the captions."""

import json
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """Train a tokenizer by byte-pair encoding.

    Args:
        captions: texts whose words become whole tokens.
        length: length of a prompt in tokens.

    Returns:
        A tokenizer that also knows every byte.
    """
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges = _merges(CLIPTokenizer(vocab=_numbered([*vocabulary, BEGIN, END])), captions)
    vocabulary += [first + second for first, second in merges] + [BEGIN, END]
    return CLIPTokenizer(vocab=_numbered(vocabulary), merges=merges, model_max_length=length)


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _merges(tokenizer: CLIPTokenizer, captions: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of tokens that byte-pair encoding merges to the words of `captions`, in order."""
    trainer = BpeTrainer(vocab_size=2048, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.backend_tokenizer.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
