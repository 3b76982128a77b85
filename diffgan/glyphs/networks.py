"""Networks of diffusers and transformers from plain configuration."""

import inspect
from typing import Any, TypeVar

from diffgan.errors import UserError

Model = TypeVar("Model")


def from_config(cls: type[Model], config: dict[str, Any]) -> Model:
    """A randomly initialised diffusers model.

    Args:
        cls: class of the model.
        config: arguments of the class.

    Raises:
        UserError: the class has no argument of that name.
    """
    unknown = set(config) - set(inspect.signature(cls.__init__).parameters)
    if unknown:
        raise UserError(f"{cls.__name__} has no argument {sorted(unknown)[0]!r}")
    return cls.from_config(config)
