"""The tokenizer of the glyph teacher: CLIP's byte-pair encoding with the words of the captions."""

import json
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """A `CLIPTokenizer` of `length` positions that knows every byte, and the words of `captions` as whole tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    words = _pairs(CLIPTokenizer(vocab={token: i for i, token in enumerate([*vocabulary, BEGIN, END])}), captions)
    vocabulary += [first + second for first, second in words] + [BEGIN, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=words, model_max_length=length)


def _pairs(tokenizer: CLIPTokenizer, captions: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of tokens that byte-pair encoding joins to make the words of `captions`, in order."""
    trainer = BpeTrainer(vocab_size=2048, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.backend_tokenizer.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
