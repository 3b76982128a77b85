"""Run the command in other processes."""

import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

from diffgan.__main__ import main

# Children are forked from a server process that has imported everything, and computed nothing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "diffgan.pairs.generation",
        "diffgan.methods.diffusion2gan",
        "diffgan.cli.export",
        "diffgan.cli.lightning_cli",
        "diffgan.cli.pairs.verify",
        "diffgan.cli.sweeps.sweep",
        "diffgan.teachers",
        "callbacks.pair_writer",
        "callbacks.progress",
        "callbacks.sample_grid",
        "datamodules.latent_pairs",
        "datamodules.prompts",
        "tensorboard.backend.event_processing.event_accumulator",
        "callbacks.run_report",
        "torch._dynamo",
    ]
)


def start(words: list[str]):
    """Start the command `diffgan words ...` in a new process."""
    process = SERVER.Process(target=main, args=(words,))
    process.start()
    return process


def run_apart(target, *args) -> int:
    """Exit code of a new process that runs target(*args)."""
    process = SERVER.Process(target=target, args=args)
    process.start()
    process.join(120)
    return process.exitcode


def start_two_processes(words: list[str], errors: Path | None = None, **environment: str) -> list:
    """Start the command as two processes, as torchrun does. `errors`: file for their standard error."""
    return start_ranks(_as_rank, words, errors, environment)


def start_ranks(target, *args) -> list:
    """Start target(rank, port, *args) in two processes; `port` is free."""
    port = _free_port()
    ranks = [SERVER.Process(target=target, args=(rank, port, *args)) for rank in range(2)]
    for process in ranks:
        process.start()
    return ranks


def run_on_two_processes(words: list[str], errors: Path | None = None, **environment: str) -> list[int]:
    """Run the command as two processes; returns their exit codes.

    Once in some hundred runs gloo (torch 2.14) has crashed a process. Then the command runs again: it resumes.
    """
    for _ in range(2):
        ranks = start_two_processes(words, errors, **environment)
        for process in ranks:
            process.join(300)
        codes = [process.exitcode for process in ranks]
        if -signal.SIGSEGV not in codes:
            break
    return codes


def _as_rank(rank: int, port: int, words: list[str], errors: Path | None, environment: dict[str, str]) -> None:
    faulthandler.enable()
    if errors is not None:
        sys.stderr = open(errors, "a", buffering=1)  # noqa: SIM115
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in (place | address | environment).items()})
    main(words)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
