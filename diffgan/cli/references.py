"""Nested configurations: merging them, evaluating their `${...}` references, checking the section `recipe`."""

import copy
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from diffgan.errors import UserError, first_line

SPECIFICATION = ("class_path", "init_args", "dict_kwargs")  # keys of a class in a configuration
RECIPE = "recipe"
SLOT = "?"  # key under which a reference is evaluated


class Source(NamedTuple):
    """name: of a file, or an option with its dashes.  config: what it sets, as nested dicts.  text: of a file."""

    name: str
    config: dict[str, Any]
    text: str | None = None

    def place(self, key: str) -> str:
        """Where a dotted key is set, for messages."""
        return self.name if self.text is None else f"{self.name}: {key}"


def overlay(below: Any, above: Any, keep_arguments: bool = True) -> Any:
    """Two nested dicts merged key by key; anything else is replaced.

    keep_arguments: whether another class keeps the arguments of the one it replaces (jsonargparse drops those that
    the new class does not take).
    """
    if isinstance(below, str) and isinstance(above, dict) and "init_args" in above:
        below = {"class_path": below}  # a class may be given by its path alone
    if not isinstance(below, dict) or not isinstance(above, dict):
        return copy.deepcopy(above)
    if not keep_arguments and above.get("class_path") not in (None, below.get("class_path")):
        return copy.deepcopy(above)
    merged = {key: overlay(below.get(key), value, keep_arguments) for key, value in above.items()}
    return {**below, **merged}


def is_named(callbacks: Any) -> bool:
    """Whether callbacks are given by name, not as a list or a single class."""
    return isinstance(callbacks, dict) and not any(key in callbacks for key in SPECIFICATION)


def get(config: Any, key: Any) -> Any:
    return config.get(key) if isinstance(config, dict) else None


def at(config: Any, keys: Sequence[Any]) -> Any:
    """The value at a path of keys; None if there is none."""
    for key in keys:
        config = get(config, key)
    return config


class Resolver:
    """Evaluates the references of a merged configuration, and says where a wrong one was written."""

    def __init__(self, merged: dict[str, Any], sources: Sequence[Source]):
        self.merged, self.sources = merged, sources
        self.references: DictConfig = OmegaConf.create(merged)

    def resolved(self) -> dict[str, Any]:
        """The merged configuration without `recipe`, with values in place of references."""
        return self._resolve({key: value for key, value in self.merged.items() if key != RECIPE}, ())

    def _resolve(self, value: Any, keys: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._resolve(entry, (*keys, key)) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._resolve(entry, (*keys, index)) for index, entry in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._evaluate(value, keys)
        return value

    def _evaluate(self, text: str, keys: tuple[Any, ...]) -> Any:
        try:
            self.references[SLOT] = text
            value = self.references[SLOT]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except (OmegaConfBaseException, RecursionError) as error:
            raise UserError(f"{self._origin(keys)}: {text}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        reason = first_line(error).partition("while resolving interpolation: ")[2].strip('"') or first_line(error)
        if not isinstance(error, InterpolationKeyError):
            return reason
        names = ", ".join(f"recipe.{name}" for name in self.merged.get(RECIPE) or {})
        return f"{reason} in the files and options of this command" + (f"; there is {names}" if names else "")

    def _origin(self, keys: tuple[Any, ...]) -> str:
        """The last file that sets this key, with the key; or the option."""
        names = [key for key in keys if not isinstance(key, int)]  # without indices of lists
        source = [source for source in self.sources if at(source.config, names) is not None][-1]
        return source.place(".".join(map(str, keys)))


def check_recipe(sources: Sequence[Source]) -> None:
    """Every change to `recipe` has an effect, or is one for another command of the recipe.

    A file may change any value of the first file with a recipe, as one file serves several commands; an option only
    values that this command refers to.

    Raises:
        UserError: for any other name, such as a misspelt one.
    """
    used = set(re.findall(rf"\$\{{{RECIPE}\.(\w+)", str([source.config for source in sources])))
    allowed: set[str] = set()
    for source in sources:
        recipe = source.config.get(RECIPE) or {}
        if not isinstance(recipe, dict):
            raise UserError(f"{source.place(RECIPE)}: expected names with values, not {recipe!r}")
        is_file = source.text is not None
        if is_file and not allowed and used & recipe.keys():
            allowed = set(recipe)
        for name in recipe:
            if name not in used and not (is_file and name in allowed):
                known = f"; known: {', '.join(sorted(allowed | used))}" if allowed | used else ""
                place = source.place(f"{RECIPE}.{name}")
                raise UserError(f"{place}: nothing in this command refers to ${{recipe.{name}}}{known}")
