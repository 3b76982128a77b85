"""What a reader of the page asks for, and how much of it."""

import json
from dataclasses import dataclass

from diffgan.errors import UserError
from diffgan.noise import SEEDS

MAX_CHARACTERS = 500  # of a prompt
MAX_IMAGES = 8  # of a request, by each model
MAX_BYTES = 32_000  # of a request


@dataclass(frozen=True)
class DrawRequest:
    """Images of every prompt on the noise of every seed."""

    prompts: list[str]
    seeds: list[int]

    @property
    def columns(self) -> list[tuple[str, int]]:
        """(prompt, seed) of each image."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]


def parse(body: bytes) -> DrawRequest:
    """A request of the page: JSON with `prompts` (texts), `seed`, and `noises`, the number of seeds from it on.

    Raises:
        UserError: it is no such request, or asks for too much.
    """
    try:
        fields = json.loads(body)
        prompts, seed, noises = fields["prompts"], fields["seed"], fields["noises"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("the request is no JSON with prompts, seed and noises") from error
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError("prompts: must be a list of texts")
    for prompt in prompts:
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise UserError("prompt: has half of a surrogate pair, which is no text")
        if len(prompt) > MAX_CHARACTERS:
            raise UserError(f"prompt: {prompt[:40]!r} ... has {len(prompt)} characters and may have {MAX_CHARACTERS}")
    if type(noises) is not int or noises < 1 or len(prompts) * noises > MAX_IMAGES:
        raise UserError(f"images: must be 1 to {MAX_IMAGES}")
    if type(seed) is not int or not 0 <= seed <= SEEDS - noises:
        raise UserError(f"seed: must be a whole number from 0 to {SEEDS - noises}")
    return DrawRequest(prompts, list(range(seed, seed + noises)))
