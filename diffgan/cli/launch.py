"""A verb's work on several processes: those that torchrun has started, or new ones on this machine.

Processes exchange tensors on the CPU (gloo), wherever they compute. The first that fails prints why, and all end.
"""

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from diffgan.cli.messages import filter_messages, quiet_model_libraries
from diffgan.errors import UserError, print_error
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit

LONGEST_WAIT = timedelta(days=2)  # for the slowest process; one that ends is noticed at once
LOOPBACK = "lo"  # the interface of processes of one machine
SECONDS_UNTIL_ENDED = 3.0  # a broken connection follows from another process's end, by which all are ended
FAILED = "diffgan/failed"  # counter of processes that have failed, in the store that all share

# (its process among all, its number on this machine) -> None; picklable
Work = Callable[[WorkSplit, int], None]


class Place(NamedTuple):
    """A process of several.  rank, world: its number and how many there are.  local: its number on this machine."""

    rank: int
    local: int
    world: int


def run_on_processes(work: Work, count: int) -> None:
    """Run `work` on `count` new processes; in this one if it is one of torchrun's, or `count` is 1.

    Raises:
        UserError: torchrun has started another number of processes; one of the new processes was killed.
        SystemExit: a process has failed and printed why.
    """
    place = _place_in_torchrun()
    if place is None and count == 1:
        work(SINGLE_PROCESS, 0)
    elif place is None:
        _start(work, count)
    elif count in (1, place.world):
        store, _, _ = next(rendezvous("env://", place.rank, place.world))
        _work_as(place, store, work)
    else:
        raise UserError(f"--devices: {count}, but torchrun has started {place.world} processes; omit --devices")


def _place_in_torchrun() -> Place | None:
    """This process's place if torchrun, or another launcher with its variables, has started several."""
    values = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    if not values["RANK"].isdigit() or not values["WORLD_SIZE"].isdigit() or values["WORLD_SIZE"] in ("0", "1"):
        return None
    return Place(int(values["RANK"]), int(values["LOCAL_RANK"] or 0), int(values["WORLD_SIZE"]))


# ---- new processes ----


def _start(work: Work, count: int) -> None:
    """Start processes, wait for them, and end them all if one fails or this one is to end."""
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it reports whom it ends
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (store.port, count, work)
    with _ends_on_sigterm():
        processes = start_processes(_run, arguments, count, join=False, daemon=True, start_method="spawn")
        try:
            while not processes.join():
                pass
        except ProcessExitedException as error:
            if store.add(FAILED, 0):
                raise SystemExit(1) from error
            raise UserError(f"{error}, one of {count}; the others were ended too") from error
        finally:
            _end(processes)


def _end(processes: ProcessContext) -> None:
    """Kill the processes that are still running."""
    for process in processes.processes:
        if process.is_alive():
            process.kill()
        process.join()


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as an exception does, so that it can end the others first."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(rank: int, port: int, count: int, work: Work) -> None:
    """What a new process does; it receives SIGINT should its parent be killed (torch.multiprocessing.spawn)."""
    filter_messages()
    if "diffusers" in sys.modules:  # with `work`; else it has nothing to do with models
        quiet_model_libraries()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    store = distributed.TCPStore("127.0.0.1", port, is_master=False)
    _work_as(Place(rank, rank, count), store, work)


# ---- one process of several ----


def _work_as(place: Place, store: distributed.Store, work: Work) -> None:
    """Run `work` in a process group; of several failures the first is printed.

    Raises:
        SystemExit: it has failed, or another process has, which breaks their connection.
    """
    try:
        distributed.init_process_group(
            "gloo", store=store, rank=place.rank, world_size=place.world, timeout=LONGEST_WAIT
        )
        work(WorkSplit(place.rank, place.world, _gather), place.local)
    except Exception as error:
        _report(error, store)
        sys.exit(1)
    distributed.destroy_process_group()


def _report(error: Exception, store: distributed.Store) -> None:
    """Print an error, unless another process has printed the one that caused it."""
    if not isinstance(error, UserError):
        time.sleep(SECONDS_UNTIL_ENDED)
    if not _is_first_failure(store):
        return
    if isinstance(error, UserError):
        print_error(error)
    else:
        traceback.print_exception(error)


def _is_first_failure(store: distributed.Store) -> bool:
    try:
        return store.add(FAILED, 1) == 1
    except RuntimeError:  # the process that holds the store has ended
        return False


def _gather(own: Tensor) -> Tensor:
    """(n, ...) of each process -> (world, n, ...) on each (collective)."""
    own = own.cpu().contiguous()
    gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, own)
    return torch.stack(gathered)
