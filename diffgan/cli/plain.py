"""Verbs that are a function: its signature is the command's, its docstring the help."""

import sys
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any, NoReturn, get_args, get_origin

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from diffgan.cli.config_errors import explain
from diffgan.errors import print_error


class VerbParser(ArgumentParser):
    """A parser that reports a mistake in one line, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and exit with code 2."""
        print_error(f"{self.prog}: {explain(message)}; see {self.prog} --help")
        sys.exit(2)


def run(verb: str, function: Callable[..., Any], words: Sequence[str]) -> None:
    """Call the function of a verb with the arguments of the command line."""
    function(**parser_of(verb, function).parse_args(list(words)).as_dict())


def parser_of(verb: str, function: Callable[..., Any]) -> ArgumentParser:
    """The parser of a verb.

    Parameters without a default are words in their order, a list takes one or more words, the others are options; a
    list that is keyword-only is an option to be repeated, a bool an option without a value.
    """
    documentation = parse_docstring(function.__doc__)
    parser = VerbParser(prog=f"diffgan {verb}", description=documentation.short_description)
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    parameters = signature(function).parameters
    special = {name: parameter for name, parameter in parameters.items() if _is_special(parameter)}
    for name, parameter in special.items():
        _add_special(parser, name, parameter, helps[name])
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(special))
    return parser


def _is_special(parameter: Parameter) -> bool:
    return parameter.annotation is bool or get_origin(parameter.annotation) is list


def _add_special(parser: ArgumentParser, name: str, parameter: Parameter, help: str) -> None:
    """Add a bool or a list, which jsonargparse by itself would read as one YAML value."""
    if parameter.annotation is bool:
        parser.add_argument(f"--{name}", action="store_true", help=help)
    elif parameter.kind is Parameter.KEYWORD_ONLY:
        required = parameter.default is Parameter.empty
        default = None if required else list(parameter.default)
        parser.add_argument(f"-{name[0]}", f"--{name}", action="append", required=required, default=default, help=help)
    else:
        parser.add_argument(name, nargs="+", type=get_args(parameter.annotation)[0], help=help)
