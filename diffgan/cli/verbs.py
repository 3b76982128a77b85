"""The verbs of `diffgan`: their names, their one-line help and the functions that run them."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

LIGHTNING = "diffgan.cli.lightning_cli:run_lightning"


class Verb(NamedTuple):
    """A verb of the command line.

    target: `module:function` that runs it.  group: heading in the help.  help: one line.
    """

    target: str
    group: str
    help: str


VERBS = {
    "fit": Verb(LIGHTNING, "train", "train a model; the same command resumes an interrupted run"),
    "validate": Verb(LIGHTNING, "train", "run the validation of a run's checkpoint"),
    "test": Verb(LIGHTNING, "train", "run the evaluation callbacks of a run's checkpoint"),
    "predict": Verb(LIGHTNING, "train", "generate noise-latent pairs; the same command resumes"),
    "plan": Verb("diffgan.cli.plan:plan", "train", "the memory that a distillation takes, before any download"),
    "sample": Verb("diffgan.cli.sample:sample", "use", "generate images with a teacher or an exported student"),
    "export": Verb("diffgan.cli.export:export", "use", "write a run's student as a diffusers pipeline directory"),
    "push": Verb("diffgan.cli.push:push", "use", "upload an export, perceptual weights or a pair set, with a card"),
    "serve": Verb("diffgan.cli.serve:serve", "use", "a page on this machine: student beside teacher on one noise"),
    "convert": Verb("diffgan.cli.convert:convert", "use", "convert the authors' E-LatentLPIPS weights to safetensors"),
    "evaluate": Verb("diffgan.cli.evaluate:evaluate", "evaluate", "metrics of a pipeline under a named protocol"),
    "sweep": Verb("diffgan.cli.sweeps.sweep:sweep", "evaluate", "train and evaluate the rows of a table; resumes"),
    "tables": Verb("diffgan.cli.tables.compare:tables", "evaluate", "a Markdown table of metrics.json files"),
    "render": Verb(
        "diffgan.cli.tables.render:render", "evaluate", "write the tables and charts of Markdown files anew"
    ),
    "report": Verb("diffgan.cli.report:report", "evaluate", "write a run's page, with other records beside it"),
    "plot": Verb("diffgan.cli.plot:plot", "evaluate", "the curves that show the health of a run, in one image"),
    "reconstruct": Verb(
        "diffgan.cli.reconstruct:reconstruct", "evaluate", "optimize latents under each perceptual distance"
    ),
    "coco-captions": Verb(
        "diffgan.cli.coco_captions:write_captions", "evaluate", "draw the captions of a COCO protocol"
    ),
    "demo": Verb("diffgan.cli.demo:demo", "use", "the whole method on the miniature, in minutes; resumes"),
    "configs list": Verb("diffgan.cli.configs:list_configs", "configs", "the configurations of the package"),
    "configs copy": Verb("diffgan.cli.configs:copy", "configs", "copy a folder of them, to be edited"),
    "pairs plan": Verb("diffgan.cli.pairs.plan:plan", "pairs", "what a pair set requires: disk, network calls, hours"),
    "pairs status": Verb(
        "diffgan.cli.pairs.status:status", "pairs", "progress of a pair set: done, claimed, rate, time left, disk"
    ),
    "pairs verify": Verb("diffgan.cli.pairs.verify:verify", "pairs", "check every shard and regenerate some pairs"),
    "pairs embed": Verb("diffgan.cli.pairs.embed:embed", "pairs", "encode every prompt of a set once, for training"),
}
GROUPS = ("train", "use", "evaluate", "pairs", "configs")
NESTED = ("pairs", "configs")  # groups whose name is the first word of their verbs

USAGE = "usage: diffgan VERB ...\n       diffgan --help | --version\n"


def help_text(verbs: Iterable[str] = tuple(VERBS)) -> str:
    """The table of these verbs by group, as `diffgan --help` prints it."""
    listed = list(verbs)
    width = max(map(len, listed))
    lines = [USAGE]
    for group in GROUPS:
        names = [name for name in listed if VERBS[name].group == group]
        if names:
            lines += [f"{group}:", *(f"  {name:<{width}}  {VERBS[name].help}" for name in names), ""]
    adapter = "Every verb takes `--adapter module:Class`: a teacher family outside the package."
    return "\n".join([*lines, "`diffgan VERB --help` lists the options of a verb.", adapter])


def verbs_of(group: str) -> list[str]:
    """The verbs whose first word is `group`, e.g. "pairs status" of "pairs"."""
    return [name for name in VERBS if name.startswith(f"{group} ")]


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The most similar of these names, if there is a similar one."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1)), None)
