"""Mutations of valid files. Each is a function of a `random.Random`, so a seed gives the same mutant everywhere."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

DEEP = "@deep@"  # stands for a nested list until the text is written
DEPTH = 3000
VALUES = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "negative": -3,
    "zero": 0,
    "10^12": 10**12,
    "fraction": 0.37,
    "text": "something else",
    "empty text": "",
    "null": None,
    "list": [1, "two"],
    "empty list": [],
    "mapping": {"class_path": "os.system", "init_args": {}},
    "deep nesting": DEEP,
}
NUMBERS = ("NaN", "infinity", "negative", "zero", "10^12", "fraction")
HEADER_LENGTH = 8  # bytes before the header of a safetensors file


class Mutant(NamedTuple):
    """data: of the file.  description: what was changed, for messages.  kind: of the mutation."""

    data: bytes
    description: str
    kind: str


# ---- values ----


def paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every entry of nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield (*path, key)
        yield from paths(entry, (*path, key))


def changed_value(content: Any, dice: random.Random) -> tuple[Any, str, str]:
    """One entry replaced, removed, renamed or added: the content, a description and the kind."""
    content = copy.deepcopy(content)
    path = dice.choice(list(paths(content)))
    place = content
    for key in path[:-1]:
        place = place[key]
    key, name = path[-1], ".".join(map(str, path))
    kind = dice.choice([*(["value"] * 5), "removed", "renamed", "added"])
    if kind == "removed":
        del place[key]
    elif kind == "renamed" and isinstance(place, dict):
        place[f"{key}x"] = place.pop(key)
    elif kind == "added" and isinstance(place, dict):
        place["unheard_of"] = 3
    else:
        number = isinstance(place[key], int | float) and not isinstance(place[key], bool)
        kind = dice.choice(NUMBERS if number and dice.random() < 0.6 else list(VALUES))
        place[key] = copy.deepcopy(VALUES[kind])
    return content, f"{name}: {kind}", kind


def changed_yaml(data: bytes, dice: random.Random) -> Mutant:
    content, description, kind = changed_value(yaml.safe_load(data), dice)
    text = yaml.safe_dump(content, sort_keys=False)
    return Mutant(_deepened(text, f"'{DEEP}'"), description, kind)


def changed_json(data: bytes, dice: random.Random) -> Mutant:
    content, description, kind = changed_value(json.loads(data), dice)
    return Mutant(_deepened(json.dumps(content), f'"{DEEP}"'), description, kind)


def changed_header(data: bytes, dice: random.Random) -> Mutant:
    """A safetensors file whose JSON header has another value, or whose header states another length."""
    length = int.from_bytes(data[:HEADER_LENGTH], "little")
    header, body = data[HEADER_LENGTH : HEADER_LENGTH + length], data[HEADER_LENGTH + length :]
    if dice.random() < 0.1:
        stated = dice.choice([0, length - 1, length + 1, 2**40, 2**64 - 1])
        return Mutant(stated.to_bytes(HEADER_LENGTH, "little") + header + body, f"header length {stated}", "length")
    mutant = changed_json(header, dice)
    return mutant._replace(data=len(mutant.data).to_bytes(HEADER_LENGTH, "little") + mutant.data + body)


def _deepened(text: str, placeholder: str) -> bytes:
    return text.replace(placeholder, "[" * DEPTH + "]" * DEPTH).encode()


# ---- bytes ----


def changed_bytes(data: bytes, dice: random.Random) -> Mutant:
    """Bytes flipped, cut off, doubled, zeroed, or replaced by others."""
    kind = dice.choice(["flipped", "truncated", "doubled", "zeroed", "binary", "empty"])
    start = dice.randrange(len(data))
    length = dice.randrange(1, 200)
    changed = {
        "flipped": lambda: data[:start] + bytes([data[start] ^ (1 << dice.randrange(8))]) + data[start + 1 :],
        "truncated": lambda: data[:start],
        "doubled": lambda: data + data,
        "zeroed": lambda: data[:start] + bytes(min(length, len(data) - start)) + data[start + length :],
        "binary": lambda: dice.randbytes(length),
        "empty": lambda: b"",
    }
    return Mutant(changed[kind](), f"{kind} at byte {start}", kind)


Mutation = Callable[[bytes, random.Random], Mutant]
