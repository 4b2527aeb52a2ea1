"""One run of the demonstration: its directory, and parameters that hold as long as that does.

A run that was killed goes on in its directory. What it is about (how many orders, the share of
stock) must then be what it was, or the accounts could not balance; so the parameters are written
there before anything else, and later ones may repeat them but not contradict them.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import msgspec

from . import source

__all__ = ["Run", "RunRefused", "open_run"]

ORDERS_DEFAULT = 5000
STOCK_SHARE_DEFAULT = Decimal("0.97")
SEED_DEFAULT = 7


class RunRefused(Exception):
    """The run cannot start with these options in this directory. Nothing was changed."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is about."""

    orders: int
    lines: int
    stock_share: Decimal
    seed: int


@contextmanager
def open_run(
    directory: Path, *, orders: int | None, stock_share: Decimal | None, seed: int | None
) -> Iterator[Run]:
    """Begin a run in the directory, or continues the one that it holds.

    Nobody else may use the directory until the block ends.

    Args:
        directory: made if it does not exist.
        orders: how many, None if the user did not say.
        stock_share: None if the user did not say.
        seed: None if the user did not say.

    Raises:
        RunRefused: another process runs there, or the options contradict those that the run began
        with. source.InputUnusable: the data package is missing.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "run.json"
    with _alone_in(directory):
        if not path.exists():
            asked_for = source.demand(ORDERS_DEFAULT if orders is None else orders)
            run = Run(
                orders=asked_for.orders,
                lines=asked_for.lines,
                stock_share=STOCK_SHARE_DEFAULT if stock_share is None else stock_share,
                seed=SEED_DEFAULT if seed is None else seed,
            )
            _write_durably(path, msgspec.json.format(msgspec.json.encode(run)))
        run = msgspec.json.decode(path.read_bytes(), type=Run)
        _refuse_contradictions(directory, run, orders=orders, stock_share=stock_share, seed=seed)
        yield run


def _refuse_contradictions(
    directory: Path, run: Run, *, orders: int | None, stock_share: Decimal | None, seed: int | None
) -> None:
    for option, wanted, began_with in (
        ("--orders", orders, run.orders),
        ("--stock-share", stock_share, run.stock_share),
        ("--seed", seed, run.seed),
    ):
        if wanted is not None and wanted != began_with:
            raise RunRefused(
                f"expected {option} {began_with}, with which the run in {directory} began, got "
                f"{wanted}: leave {option} out to continue that run, or name another directory to "
                "begin a new one"
            )


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    # The kernel drops the lock with the process, however that ends.
    with (directory / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunRefused(
                "expected a directory that no other process uses, but process "
                f"{lock.read().strip()} runs in {directory}: wait until it ends, or name another"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _write_durably(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
