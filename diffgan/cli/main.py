"""The command `diffgan`: finds the verb, runs it, turns a user's mistakes into one line and an exit code.

Nothing heavy is imported here: `diffgan --help` and light verbs must not wait for torch.
"""

import errno
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from diffgan.cli import verbs
from diffgan.cli.messages import filter_messages, quiet_model_libraries
from diffgan.cli.renamed import current_verb
from diffgan.errors import UserError, print_error, reason

COMMAND_LINE_ERROR = 2
MISTAKE = 1
# Where a verb or a library writes: full, read-only or not permitted.
REFUSED_BY_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(args: Sequence[str] | None = None) -> None:
    """Run `diffgan VERB ...`; args: the words after `diffgan`, by default those of the command line.

    A mistake of the user ends with one line on standard error and exit code 1 (2 for the command line itself), Ctrl-C
    with one line and 130, where Lightning would say 1.
    """
    args = sys.argv[1:] if args is None else list(args)
    filter_messages()
    try:
        _run(args)
    except Exception as error:
        if (mistake := _mistake(error)) is None:
            raise
        print_error(mistake)
        sys.exit(MISTAKE)
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        _report_interruption(args)
        sys.exit(128 + signal.SIGINT)


# ---- dispatch ----


def _run(args: Sequence[str]) -> None:
    """Run the verb that the first words name."""
    if not args or args[0] in ("-h", "--help"):
        print(verbs.help_text())
        sys.exit(0 if args else COMMAND_LINE_ERROR)
    if args[0] == "--version":
        print(f"diffgan {_version()}")
        return
    first, rest = current_verb(args[0]), list(args[1:])
    if first.startswith("-"):  # options before the verb, e.g. -c FILE fit
        _load(verbs.LIGHTNING)(list(args))
        return
    if first in verbs.NESTED:
        first, rest = _nested(first, rest)
    if first not in verbs.VERBS:
        _exit_unknown(first)
    _call(first, rest)


def _nested(group: str, words: list[str]) -> tuple[str, list[str]]:
    """The verb of a group, e.g. "pairs status", and its arguments."""
    names = verbs.verbs_of(group)
    if words[:1] in (["-h"], ["--help"]):
        print(verbs.help_text(names))
        sys.exit(0)
    if not words:
        sys.stderr.write(f"diffgan: error: {group} requires a verb: {', '.join(names)}\n")
        sys.exit(COMMAND_LINE_ERROR)
    return f"{group} {words[0]}", words[1:]


def _exit_unknown(verb: str) -> None:
    similar = verbs.nearest(verb, verbs.VERBS)
    offer = f"did you mean {similar}?" if similar else "see diffgan --help"
    sys.stderr.write(f"diffgan: error: unknown verb {verb!r}; {offer}\n")
    sys.exit(COMMAND_LINE_ERROR)


def _call(verb: str, words: list[str]) -> None:
    target = verbs.VERBS[verb].target
    if target == verbs.LIGHTNING:
        _load(target)([verb, *words])
        return
    from diffgan.cli import plain  # jsonargparse takes a fifth of a second: not for --help

    words = _with_adapter(words)
    plain.run(verb, _load(target), words)


def _with_adapter(words: list[str]) -> list[str]:
    """Import the teacher family that `--adapter` names, which every verb takes; returns the other words."""
    for i, word in enumerate(words):
        option, is_one, name = word.partition("=")
        if option != "--adapter":
            continue
        rest = words[i + 1 :] if is_one else words[i + 2 :]
        if not is_one:
            name = words[i + 1] if i + 1 < len(words) else ""
        _load("diffgan.teachers.outside:use_adapter")(name)
        return words[:i] + rest
    return words


def _load(target: str) -> Callable[..., None]:
    """The function `module:name`."""
    module, name = target.split(":")
    function = getattr(importlib.import_module(module), name)
    if "torch" in sys.modules:  # else the verb has nothing to do with models
        quiet_model_libraries()
    return function


def _version() -> str:
    try:
        return version("diffgan")
    except PackageNotFoundError:
        return "(not installed)"


# ---- messages ----


def _report_interruption(args: Sequence[str]) -> None:
    """One line on standard error, from the first process alone."""
    lightning = sys.modules.get("lightning.pytorch.utilities")
    if lightning is not None and getattr(lightning.rank_zero_only, "rank", 0) != 0:
        return
    more = "; the same command resumes" if args[:1] in (["fit"], ["predict"]) else ""
    sys.stderr.write(f"diffgan: interrupted{more}\n")


def _mistake(error: BaseException | None) -> Exception | None:
    """The user's mistake behind an error: libraries wrap what a constructor raises."""
    while error is not None:
        names = [kind.__name__ for kind in type(error).__mro__]  # modules of these classes take long to load
        if isinstance(error, UserError) or "MisconfigurationException" in names:
            return error
        if "BackendCompilerFailed" in names:
            return _compiler_error(error)
        if isinstance(error, OSError) and error.errno in REFUSED_BY_THE_SYSTEM:
            return UserError(f"{error.filename or 'output'}: cannot be written ({reason(error)}); choose another place")
        error = error.__cause__ or error.__context__
    return None


def _compiler_error(error: BaseException) -> UserError:
    """What torch.compile failed with; the compiler's own words if there are any."""
    first, *more = str(error).splitlines()
    lines = [first, *(line for line in more if "error:" in line)][:2]
    return UserError(f"compile: torch.compile failed ({': '.join(lines)}); fix that, or omit `compile`")
