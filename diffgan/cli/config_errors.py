"""Mistakes in configurations, in one line: file, key, value, what is expected, the most similar known key.

jsonargparse reports them as a tree of every alternative it tried. Its first branch ends at the mistake.
"""

import importlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from diffgan.cli.class_names import CLASSES, config_files
from diffgan.cli.renamed import translate_config
from diffgan.cli.verbs import nearest

TOP_LEVEL = (
    "seed_everything",
    "float32_matmul_precision",
    "trainer",
    "model",
    "data",
    "ckpt_path",
    "weights_only",
    "return_predictions",
)
OPTIONAL = {"bitsandbytes": "bitsandbytes>=0.50"}  # packages of the extra `gpu`, which configurations name classes of
PREAMBLE = ("Does not validate", "Errors:", "Given value type:", "- Not a valid subclass")
UNKNOWN = re.compile(r"(?:[Oo]ption|[Kk]ey) '([^']+)' is not accepted|does not accept option '([^']+)'")


class Mistake(NamedTuple):
    """keys: where it is, outermost first.  owner: path of the class whose argument it is.

    reason: jsonargparse's words.  expected, value: of a value of the wrong type.
    """

    keys: tuple[str, ...]
    owner: str | None
    reason: str
    expected: str | None = None
    value: str | None = None


def explain(message: str, words: Sequence[str] = ()) -> str:
    """One line about a parser's error message; `words`: the command line, whose configuration files are searched."""
    mistake = _mistake(message)
    if (match := UNKNOWN.search(mistake.reason)) is not None:
        return _unknown_key(mistake, match[1] or match[2], words)
    place = _place(mistake, words)
    if mistake.expected is not None:
        return f"{place}: {mistake.value!r} is not valid, expected {mistake.expected}"
    if "has no attribute" in mistake.reason or "No module named" in mistake.reason:
        return _unknown_class(mistake, words)
    owner = f"{_bare(mistake.owner)}: " if mistake.owner else ""
    return f"{place}: {owner}{mistake.reason}" if place else mistake.reason


# ---- reading the message ----


def _mistake(message: str) -> Mistake:
    """The mistake at the end of the first branch of a message."""
    keys, owner, subtypes = [], None, ""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if (match := re.fullmatch(r'Parser key "([^"]*)": ?(.*)', line)) is not None:
            keys += match[1].split(".")
            line = match[2]
        if (match := re.search(r"given class_path '([^']*)'", line)) is not None:
            owner = match[1]
        elif line.startswith("Subtypes:"):
            subtypes = line.removeprefix("Subtypes:").strip(" []")
        elif line and not line.startswith(PREAMBLE):
            return _leaf(tuple(keys), owner, line, subtypes, lines[number:])
    return Mistake(tuple(keys), owner, _joined(message))


def _leaf(keys: tuple[str, ...], owner: str | None, line: str, subtypes: str, rest: list[str]) -> Mistake:
    """The mistake that one line states."""
    if (match := re.search(r"^-? ?Expected an? (.*?)\. Got value: (.*)", line)) is not None:
        return Mistake(keys, owner, line, _types(match[1]), match[2])
    if line.startswith("- Expected"):  # one of several simple types: the value follows all of them
        value = next((text.removeprefix("Given value: ") for text in rest if text.startswith("Given value: ")), "")
        return Mistake(keys, owner, line, _types(subtypes), value)
    if (match := re.search(r"class_path='([^']+)'", line)) is not None:
        owner = match[1]
    return Mistake(keys, owner, line.removeprefix("- "))


def _types(text: str) -> str:
    """ "<class 'int'>, <class 'NoneType'>" -> "int or null" """
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text).replace("NoneType", "null")
    return text.replace(", ", " or ") if "[" not in text else text


def _joined(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines())[:400]


# ---- telling what is wrong ----


def _unknown_key(mistake: Mistake, key: str, words: Sequence[str]) -> str:
    if mistake.owner is None:
        return _unknown_option(key, words)
    place = _place(mistake._replace(keys=(*mistake.keys, key), expected=None), words)
    known = _arguments(mistake.owner)
    return f"{place}: {_bare(mistake.owner)} has no such argument{_offer(key, known)}"


def _unknown_option(key: str, words: Sequence[str]) -> str:
    """A key of the trainer or at the top level."""
    place = _place(Mistake(tuple(key.split(".")), None, ""), words)
    if key.startswith("trainer."):
        name = key.removeprefix("trainer.").split(".")[0]
        return f"{place}: Trainer has no such argument{_offer(name, _arguments('lightning.pytorch.Trainer'))}"
    return f"{place}: no such key{_offer(key.split('.')[0], TOP_LEVEL)}"


def _unknown_class(mistake: Mistake, words: Sequence[str]) -> str:
    place = _place(mistake._replace(keys=(*mistake.keys, "class_path"), value=mistake.owner), words)
    package = mistake.owner.partition(".")[0]
    if package in OPTIONAL and importlib.util.find_spec(package) is None:
        return f"{place}: the package {package} is not installed: pip install '{OPTIONAL[package]}'"
    by_name = {_bare(path): path for path in CLASSES}
    similar = nearest(_bare(mistake.owner), by_name)
    offer = f"; did you mean {by_name[similar]}?" if similar else ""
    return f"{place}: no class {mistake.owner} ({mistake.reason}){offer}"


def _offer(key: str, known: Sequence[str]) -> str:
    similar = nearest(key, known)
    return f"; did you mean {similar}?" if similar else f"; known: {', '.join(known)}"


def _arguments(class_path: str) -> list[str]:
    """The names of a class's arguments."""
    module, _, name = class_path.rpartition(".")
    try:
        parameters = signature(getattr(importlib.import_module(module), name).__init__).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return [name for name in parameters if name not in ("self", "args", "kwargs")]


def _bare(class_path: str | None) -> str:
    return (class_path or "").rpartition(".")[2]


# ---- finding the place ----


def _place(mistake: Mistake, words: Sequence[str]) -> str:
    """Where the user wrote it: "FILE: dotted.key" with the value, or the option of the command line."""
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and mistake.keys and option[2:].split(".")[-1] == mistake.keys[-1]:
            return f"command line: {option}"
    for file in reversed(config_files(words)):
        for path, value in entries(_loaded(file)):
            if _is_at(mistake, path, value):
                shown = "" if isinstance(value, dict | list) or mistake.expected else f": {value}"
                return f"{file}: {'.'.join(path)}{shown}"
    return ".".join(mistake.keys)


def _is_at(mistake: Mistake, path: tuple[str, ...], value: Any) -> bool:
    """Whether a file's entry is the one of the mistake: the same last key, below all the keys in their order."""
    if not mistake.keys or path[-1] != mistake.keys[-1]:
        return False
    remaining = iter(path)
    below = all(key in remaining for key in mistake.keys)
    return below and (mistake.value is None or str(value) == mistake.value)


def _loaded(file: Path) -> Any:
    try:
        return translate_config(yaml.safe_load(file.read_text()))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def entries(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every entry of a nested configuration with its path; entries of a list by their index."""
    if path:
        yield path, config
    if isinstance(config, dict | list):
        items = config.items() if isinstance(config, dict) else enumerate(config)
        for key, value in items:
            yield from entries(value, (*path, str(key)))
