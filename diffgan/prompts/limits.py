"""Bounds of prompts that are given on a command line or in a configuration."""

from collections.abc import Sequence

from diffgan.errors import UserError

LONGEST = 10_000  # characters; text encoders take 77 tokens, and tokenizing megabytes takes minutes


def require_prompts(name: str, prompts: Sequence[str]) -> None:
    """Raises UserError if there is no prompt, or one is longer than `LONGEST` characters.

    name: of the option or argument, for the message.
    """
    if not prompts:
        raise UserError(f"{name}: give at least one prompt")
    for prompt in prompts:
        if len(prompt) > LONGEST:
            raise UserError(
                f"{name}: {prompt[:20]!r}... has {len(prompt)} characters; a prompt may have {LONGEST} at most"
            )
