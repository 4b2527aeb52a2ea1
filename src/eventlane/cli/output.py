"""What commands print: tables for people, JSON for programs, with the names of the API."""

import argparse
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from rich.console import Console
from rich.table import Table

__all__ = ["add_json", "add_place", "plain", "show", "table"]


_WIDTH = 1000


def add_json(command: argparse.ArgumentParser) -> None:
    """Every command has it, and takes the broker before and after its name."""
    command.add_argument("--json", action="store_true", help="print JSON")
    add_place(command, default=argparse.SUPPRESS)


def add_place(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Where the broker is."""
    parser.add_argument(
        "--broker", metavar="URL", default=default, help="embedded:DIR; else EVENTLANE_BROKER"
    )
    parser.add_argument(
        "--app", metavar="MODULE:APP", default=default, help="take the broker from an app"
    )


def plain(value: object) -> Any:
    """A value as JSON knows it; bytes as text where they are text."""
    return msgspec.to_builtins(value, enc_hook=str, builtin_types=(bytes, datetime, UUID))


def show(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(plain(value), indent=2, default=_text, ensure_ascii=False))


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if isinstance(value, datetime) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; numbers to the right."""
    listed = [[_cell(each) for each in row] for row in rows]
    printed = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(row[index].isdigit() for row in listed)
        printed.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        printed.add_row(*row)
    # Wide enough for every row: an id that is cut in two cannot be copied.
    Console(highlight=False, markup=False, width=_WIDTH).print(printed, soft_wrap=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) else _text(value)
