"""Configuration files of one command: `${...}` references across them, and callbacks by name.

jsonargparse parses and merges the files; what it reads of each is prepared here:

* `${model.init_args.teacher}` or `${recipe.teacher}` becomes the value which that key has after all files and options
  of the command line, `${oc.env:NAME,default}` that of an environment variable (OmegaConf's syntax).
* The section `recipe` holds values to refer to. It may name a file, relative to the file it is in.
* `trainer.callbacks` may map names to callbacks. Options then change single values; null removes one.
"""

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from jsonargparse import get_loader
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffgan.cli.config_errors import entries, explain
from diffgan.cli.references import RECIPE, SPECIFICATION, Resolver, Source, at, check_recipe, get, is_named, overlay
from diffgan.cli.renamed import translate_config
from diffgan.cli.verbs import nearest
from diffgan.errors import UserError, first_line, print_error
from diffgan.packaged import config_files, find_config, find_file, packaged_configs

VERBS = ("fit", "validate", "test", "predict")
CALLBACKS = ("trainer", "callbacks")
MOST_ENTRIES = 20_000  # of a file; aliases of aliases would fill the memory
PROGRAM = "A configuration is a program: its class paths are imported and called. Read it first if it is not your own."


class Word(NamedTuple):
    """name: of an option, without dashes.  value: None for an option without one.  words: as they were given."""

    name: str
    value: str | None
    words: tuple[str, ...]


class Prepared(NamedTuple):
    """words: the command line for jsonargparse.  texts: text of a file -> text to be parsed in its place.

    callbacks: names of the callbacks, in the order of their list; none if they were given as a list.
    """

    words: list[str]
    texts: Mapping[str, str]
    callbacks: tuple[str, ...]


class ConfigParser(LightningArgumentParser):
    """Parser that reads the prepared text of configuration files, and writes callbacks by name if they were named.

    To jsonargparse they are a list: it would not merge a mapping of classes.
    """

    prepared = Prepared([], {}, ())
    given: Sequence[str] = ()  # the command line, whose options and files an error message names

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"epilog": PROGRAM, **kwargs})
        self.started_in = Path.cwd()  # while a file is parsed, the current folder is the file's

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake in one line and exit with code 2."""
        if not self.exit_on_error:  # a parser inside another one, which reports
            super().error(message, ex)
        with contextlib.chdir(self.started_in):
            print_error(explain(message, self.given))
        sys.exit(2)

    def parse_string(self, content: str, path: Any = "", **kwargs: Any) -> Any:
        return super().parse_string(self.prepared.texts.get(content, content), path, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        text = super().dump(*args, **kwargs)
        config, names = yaml.safe_load(text), self.prepared.callbacks
        callbacks = at(config, CALLBACKS)
        if not names or not isinstance(callbacks, list) or len(callbacks) != len(names):
            return text
        config["trainer"]["callbacks"] = dict(zip(names, callbacks, strict=True))
        header = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
        return "".join(header) + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def with_configs_found(words: Sequence[str]) -> list[str]:
    """The command line, with the file that each `-c NAME` stands for (`find_config`).

    Raises:
        UserError: there is none, but one of a similar name in the package.
    """
    found = list(words)
    for i, word in enumerate(words):
        if i and words[i - 1] in ("-c", "--config"):
            found[i] = _found(word)
        elif word.startswith("--config="):
            found[i] = f"--config={_found(word.removeprefix('--config='))}"
    return found


def _found(name: str) -> str:
    file = find_config(name)
    if not Path(file).exists():
        known = [str(each.with_suffix("")) for each in config_files(packaged_configs())]
        if (similar := nearest(name.removeprefix("configs/").removesuffix(".yaml"), known)) is not None:
            raise UserError(f"-c {name}: no such file; did you mean {similar}? See diffgan configs list")
    return file


def prepare(words: Sequence[str]) -> Prepared:
    """The command line, `VERB` and its options, with references resolved and callbacks as a list.

    Raises:
        UserError: a file is not YAML; a reference has no value; a value of `recipe` is not used.
    """
    start = next((i + 1 for i, word in enumerate(words) if word in VERBS), len(words))
    options = list(_options(words[start:]))
    sources, merged = [], {}
    for option in options:
        if (source := _source(option, merged)) is not None:
            merged = _with_source(merged, source, sources)
            sources.append(source)
    check_recipe(sources)
    resolved = Resolver(merged, sources).resolved()
    callbacks, named = at(merged, CALLBACKS), is_named(at(merged, CALLBACKS))
    names = tuple(name for name, value in callbacks.items() if value is not None) if named else ()
    texts = _texts(sources, merged, resolved, names)
    kept = [word for option in options for word in _kept(option, resolved, named)]
    return Prepared([*words[:start], *kept], texts, names)


def _with_source(merged: dict[str, Any], source: Source, before: Sequence[Source]) -> dict[str, Any]:
    """Everything so far with one more file or option."""
    old, new = at(merged, CALLBACKS), at(source.config, CALLBACKS)
    if is_named(new) and isinstance(old, list):
        listing = [other.name for other in before if isinstance(at(other.config, CALLBACKS), list)][-1]
        raise UserError(f"{source.place('trainer.callbacks')}: names callbacks, {listing} lists them without names")
    if is_named(old) and at(source.config, ("trainer", "callbacks+")) is not None:
        raise UserError(
            f"{source.place('trainer.callbacks+')}: the callbacks have names: add one as trainer.callbacks.NAME"
        )
    result = overlay(merged, source.config)
    if is_named(new) and is_named(old):
        result["trainer"]["callbacks"] = overlay(old, new, keep_arguments=False)
    return result


# ---- the command line ----


def _options(words: Sequence[str]) -> Iterable[Word]:
    """`--name=value`, `--name value`, `--name`, `-c FILE` and words that are no options."""
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            yield Word("", None, (word,))
        elif equals:
            yield Word(name, value, (word,))
        elif remaining and (not remaining[0].startswith("-") or _is_number(remaining[0])):
            value = remaining.pop(0)
            yield Word("config" if word == "-c" else name, value, (word, value))
        else:
            yield Word(name, None, (word,))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _source(option: Word, merged: dict[str, Any]) -> Source | None:
    """What an option sets: all of a file or one key; None if it sets nothing that a reference can name."""
    if option.value is None:
        return None
    if option.name == "config":
        return _file(Path(option.value).expanduser())
    keys = tuple(option.name.split("."))
    if keys[:2] == CALLBACKS and len(keys) > 2 and not is_named(at(merged, CALLBACKS)):
        return None  # jsonargparse's way to change the last one of a list
    return Source(f"--{option.name}", _nested(merged, keys, _value(option.value)))


def _value(text: str) -> Any:
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError:
        return text


def _nested(merged: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    """{"a": {"b": value}}; where the option omits `init_args` of a class it is added, as jsonargparse does."""
    key, *rest = keys
    if isinstance(merged, str):
        merged = {"class_path": merged}
    below = merged if isinstance(merged, dict) else {}
    if "class_path" in below and key not in SPECIFICATION:
        return {"init_args": _nested(below.get("init_args"), keys, value)}
    return {key: _nested(below.get(key), rest, value) if rest else value}


def _kept(option: Word, resolved: dict[str, Any], named: bool) -> tuple[str, ...]:
    """The words of an option as jsonargparse gets them: none if the option is dealt with here."""
    keys = option.name.split(".")
    if keys[0] == RECIPE or (named and tuple(keys[:2]) == CALLBACKS):
        return ()
    if option.value is None or option.name == "config" or "${" not in option.value:
        return option.words
    value = at(resolved, _keys(resolved, keys))
    return (f"--{option.name}={value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)}",)


def _keys(config: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """The path of an option's key, with the `init_args` that the option omits."""
    path, nested = [], _nested(config, keys, None)
    while nested is not None:
        ((key, nested),) = nested.items()
        path.append(key)
    return path


# ---- files ----


def _file(path: Path) -> Source | None:
    """A configuration file; None if there is none at this path, which jsonargparse reports, or the path is a URL."""
    if not path.is_file():
        return None
    config, text = _read(path)
    if isinstance(config.get(RECIPE), str):
        recipe = path.parent / config[RECIPE]
        if not recipe.is_file() and not (recipe := Path(find_file(config[RECIPE]))).is_file():
            raise UserError(f"{path}: recipe: {path.parent / config[RECIPE]}: no such file")
        config[RECIPE], _ = _read(recipe)
    return Source(str(path), config, text)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A YAML file's mapping and text. Raises UserError naming the file and the line."""
    try:
        text = path.read_text()
        content = get_loader("yaml")(text) or {}
        if sum(1 for _ in islice(entries(content), MOST_ENTRIES + 1)) > MOST_ENTRIES:
            raise UserError(f"{path}: has more than {MOST_ENTRIES} entries, those of its aliases included")
        config = translate_config(content)
        OmegaConf.create(config)  # references are well-formed
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UserError(f"{path}, line {line}: is not valid YAML ({error.problem})") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{path}: {f'{key}: ' if key else ''}{first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is no configuration: expected `key: value` lines")
    return config, text


def _texts(
    sources: Sequence[Source], merged: dict[str, Any], resolved: dict[str, Any], callbacks: Sequence[str]
) -> dict[str, str]:
    """What jsonargparse parses of each file; the last one holds the named callbacks of all."""
    files = [source for source in sources if source.text is not None]
    if callbacks and not files:
        raise UserError("--trainer.callbacks: callbacks by name need a configuration file (-c FILE)")
    texts = {}
    for source in files:
        config = _substituted(source.config, merged, resolved)
        config.pop(RECIPE, None)
        if is_named(at(config, CALLBACKS)):
            del config["trainer"]["callbacks"]
        if callbacks and source is files[-1]:
            listed = [resolved["trainer"]["callbacks"][name] for name in callbacks]
            config["trainer"] = {**(config.get("trainer") or {}), "callbacks": listed}
        texts[source.text] = yaml.safe_dump(config, default_style='"', sort_keys=False)  # quoted: types stay
    return texts


def _substituted(config: dict[str, Any], merged: Any, resolved: Any) -> dict[str, Any]:
    """A file's values with references resolved; a reference that a later file or option overrides is dropped."""
    result = {}
    for key, value in config.items():
        final, replaced = get(merged, key), get(resolved, key)
        if isinstance(value, dict):
            result[key] = _substituted(value, final, replaced)
        elif "${" not in str(value):
            result[key] = value
        elif value == final:
            result[key] = replaced
    return result
