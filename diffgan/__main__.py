"""The command `diffgan`: Lightning's verbs (fit, validate, test, predict) and the plain ones (sample, export, ...)."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import get_args, get_origin

import diffusers
import transformers
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from diffgan.cli.lightning_cli import run_lightning
from diffgan.errors import UserError, print_error

PLAIN = {
    "sample": ("diffgan.cli.sample:sample", "pictures from a teacher or an exported student"),
    "export": ("diffgan.cli.export:export", "a run's student as a diffusers pipeline directory"),
    "judge": ("diffgan.cli.evaluate:judge", "figures of a pipeline on a named protocol"),
    "tables": ("diffgan.cli.tables:tables", "a Markdown table of metrics.json files"),
    "watch": ("diffgan.cli.plot:watch", "the curves that tell whether a run is healthy, in one picture"),
    "reconstruct": (
        "diffgan.cli.reconstruct:reconstruct",
        "how far each perceptual distance leads from noise",
    ),
    "convert": (
        "diffgan.cli.convert:convert",
        "the authors' weights of E-LatentLPIPS as a file of this project",
    ),
}

GROUPS = {
    "pairs": {
        "plan": ("diffgan.cli.pairs.plan:plan", "what a pair set will take: disk, network calls, hours"),
        "status": ("diffgan.cli.pairs.status:status", "how far a set is: done, claimed, rate, time left, disk"),
        "embed": ("diffgan.cli.pairs.embed:embed", "encode every prompt of a set once, for trainings to read"),
        "verify": ("diffgan.cli.pairs.verify:verify", "check every shard, and make a sample of pairs again"),
    },
}


def plain(verb: str, target: str, args: Sequence[str]) -> None:
    """One of the plain verbs: a function whose signature is the command's and whose docstring is its help.

    Parameters without a default are words in their order, a list takes one or more words, the others are options; a
    list that is keyword-only is an option to be repeated, a bool an option without a value.
    """
    function = _load(target)
    documentation = parse_docstring(function.__doc__)
    parser = ArgumentParser(prog=f"diffgan {verb}", description=documentation.short_description)
    described = {parameter.arg_name: parameter.description for parameter in documentation.params}
    special = {name: p for name, p in signature(function).parameters.items() if _is_list(p) or p.annotation is bool}
    for name, parameter in special.items():
        if parameter.annotation is bool:
            parser.add_argument(f"--{name}", action="store_true", help=described[name])
        elif parameter.kind is Parameter.KEYWORD_ONLY:
            parser.add_argument(f"-{name[0]}", f"--{name}", action="append", required=True, help=described[name])
        else:
            parser.add_argument(name, nargs="+", type=get_args(parameter.annotation)[0], help=described[name])
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(special))
    function(**parser.parse_args(list(args)).as_dict())


def _is_list(parameter: Parameter) -> bool:
    return get_origin(parameter.annotation) is list


def group(name: str, args: Sequence[str]) -> None:
    """One verb of a group of plain ones."""
    parser = argparse.ArgumentParser(prog=f"diffgan {name}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    for verb, (_, what) in GROUPS[name].items():
        verbs.add_parser(verb, help=what)
    verb = parser.parse_args(args[:1]).verb
    plain(f"{name} {verb}", GROUPS[name][verb][0], args[1:])


def _load(target: str) -> Callable:
    module, name = target.split(":")
    return getattr(__import__(module, fromlist=[name]), name)


def _plain_help() -> str:
    groups = {f"{name} {verb}": told for name, verbs in GROUPS.items() for verb, told in verbs.items()}
    return "plain verbs: " + "; ".join(f"{verb} ({what})" for verb, (_, what) in (PLAIN | groups).items())


NOISE = (
    r".*(treespec|many workers|in eval mode|args parameter is intended|torch_dtype|smaller than the logging|"
    r"Checkpoint directory).*"
)


def _quieten() -> None:
    """Leave out what libraries say on every run and nobody can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=NOISE)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    checkpoints = "lightning.pytorch.trainer.connectors.checkpoint_connector"
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", checkpoints):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every attempt to reach the hub


def main(args: Sequence[str] | None = None) -> None:
    """Run `diffgan VERB ...`; args: the words after `diffgan`, by default those of the command line.

    A mistake of the user ends with one line on standard error and exit code 1 (2 for the command line itself), Ctrl-C
    with one line and 130, where Lightning would say 1.
    """
    args = sys.argv[1:] if args is None else list(args)
    _quieten()
    try:
        _run(args)
    except Exception as error:
        if (mistake := _mistake(error)) is None:
            raise
        print_error(mistake)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if getattr(rank_zero_only, "rank", 0) == 0:
            more = "; the same command goes on" if args[:1] in (["fit"], ["predict"]) else ""
            sys.stderr.write(f"diffgan: interrupted{more}\n")
        sys.exit(128 + signal.SIGINT)


def _run(args: Sequence[str]) -> None:
    verb = args[0] if args else None
    if verb in PLAIN:
        plain(verb, PLAIN[verb][0], args[1:])
    elif verb in GROUPS:
        group(verb, args[1:])
    else:
        run_lightning(args, _plain_help())


def _mistake(error: BaseException | None) -> Exception | None:
    """The user's mistake behind an error: libraries wrap what a constructor raises."""
    while error is not None and not isinstance(error, UserError | MisconfigurationException):
        if "BackendCompilerFailed" in [kind.__name__ for kind in type(error).__mro__]:  # its module takes long to load
            first, *more = str(error).splitlines()
            told = [first, *(line for line in more if "error:" in line)][:2]  # the compiler's own words, if there are
            return UserError(f"compile: torch.compile failed ({': '.join(told)}); mend that, or leave `compile` out")
        error = error.__cause__ or error.__context__
    return error


if __name__ == "__main__":
    main()
