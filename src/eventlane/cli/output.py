"""What commands print: tables and sentences for people, JSON for programs with the API's names."""

import base64
import contextlib
import io
import json
import shutil
import sys
import textwrap
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from eventlane import Position
from eventlane.cli.words import one_line

__all__ = [
    "Column",
    "fields",
    "heading",
    "note",
    "plain",
    "progress",
    "say",
    "say_command",
    "screen_width",
    "show",
    "show_line",
    "table",
    "working",
]

_WIDTH_MIN, _WIDTH_PIPED = 80, 120
_GAP = 2
_APART = ("header_block", "position", "record")
"""What an API object also has in another form."""


# --- JSON -------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value as JSON knows it, with the attributes that it has in the API; bytes as text.

    Bytes that are no text are `{"base64": …}`, so that nothing is lost.
    """
    if isinstance(value, msgspec.Struct):
        names = [*value.__struct_fields__, *_properties(type(value))]
        return {name: plain(getattr(value, name)) for name in names if name not in _APART}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Position):
        return {"topic": value.topic, "partition": value.partition, "offset": value.offset}
    return _plain_container(value) if isinstance(value, Mapping | list | tuple) else value


def _plain_container(value: Any) -> Any:
    if hasattr(value, "items"):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value]


def _properties(cls: type) -> Iterable[str]:
    for name, member in vars(cls).items():
        if isinstance(member, property) and not name.startswith("_"):
            yield name


def show(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def show_line(value: Any) -> None:
    """Print a value as JSON on one line, at once: for what goes on coming."""
    print(json.dumps(plain(value), ensure_ascii=False), flush=True)


# --- for people -------------------------------------------------------------------------------


def screen_width() -> int:
    """How many columns lines may have."""
    return max(_WIDTH_MIN, shutil.get_terminal_size((_WIDTH_PIPED, 24)).columns)


def _print(text: str | Text, style: str = "") -> None:
    # Laid out here already. Rich gives the colours, on a terminal and unless NO_COLOR is set.
    coloured = io.StringIO()
    # Written by print: where nobody reads any more, rich would end the program with 1.
    console = Console(
        file=coloured,
        force_terminal=Console().is_terminal,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(text, style=style, soft_wrap=True, no_wrap=True, crop=False)
    print(coloured.getvalue(), end="")


def say(text: str, *, style: str = "", indent: str = "") -> None:
    """Print a sentence, broken where the line ends but never within an id or a command."""
    _print(
        textwrap.fill(
            one_line(text),
            screen_width(),
            initial_indent=indent,
            subsequent_indent=" " * len(indent),
            break_long_words=False,
            break_on_hyphens=False,
        ),
        style,
    )


def say_command(why: str, command: str) -> None:
    """Print a command that can be copied, and what for."""
    _print(f"  {why + ':':<16} {command}")


def heading(text: str) -> None:
    """Print what the following is about."""
    print()
    say(text, style="bold")


def note(text: str) -> None:
    """Tell a person something beside what was asked for, on stderr."""
    print(text, file=sys.stderr)


class Column(NamedTuple):
    """A column of a table."""

    name: str
    least: int | None = None
    """It may be cut to so many characters; None: never."""
    spare: int = 0
    """Above 0: left out where it is empty, or the line too short, the highest number first."""
    is_right: bool = False
    """Numbers are to the right anyway."""


def table(
    columns: Sequence[str | Column],
    rows: Iterable[Sequence[object]],
    *,
    below: Sequence[str] = (),
) -> None:
    """Print rows under their columns, no wider than the screen where that can be.

    Args:
        columns: Their names, and what may be done with them where the screen is narrow.
        rows: Whole numbers are printed with commas and to the right.
        below: A line for each row, which stands below it from the second column on.
    """
    heads = [Column(each) if isinstance(each, str) else each for each in columns]
    listed = list(rows)
    kept = list(zip(heads, *[[_cell(each) for each in row] for row in listed], strict=True))
    laid_out = [
        _Laid(
            head,
            [Text(head.name, style="bold"), *cells],
            is_right=head.is_right or _is_numeric([row[index] for row in listed]),
        )
        for index, (head, *cells) in enumerate(kept)
        if not head.spare or any(each.plain for each in cells)
    ]
    _fit(laid_out, screen_width())
    indent = " " * (laid_out[0].width + _GAP)
    for number, line in enumerate(zip(*(each.lines() for each in laid_out), strict=True)):
        joined = Text(" " * _GAP).join(line)
        joined.rstrip()
        _print(joined)
        if below and number:
            text = Text(indent + one_line(below[number - 1]))
            text.truncate(screen_width(), overflow="ellipsis")
            _print(text)


class _Laid:
    """A column, and how wide it is."""

    def __init__(self, head: Column, cells: list[Text], *, is_right: bool) -> None:
        self.head = head
        self.cells = cells
        self.is_right = is_right
        self.width = max(cell_len(each.plain) for each in cells)
        self.least = self.width
        if head.least is not None:
            self.least = min(self.width, max(head.least, len(head.name)))

    def lines(self) -> Iterable[Text]:
        for cell in self.cells:
            cell.truncate(self.width, overflow="ellipsis")
            cell.align("right" if self.is_right else "left", self.width)
            yield cell


def _fit(columns: list[_Laid], width: int) -> None:
    def total(widths: Iterable[int]) -> int:
        return sum(widths) + _GAP * (len(columns) - 1)

    while total(each.least for each in columns) > width:
        spare = max(columns, key=lambda each: each.head.spare)
        if not spare.head.spare:
            break
        columns.remove(spare)
    for _ in range(total(each.width for each in columns) - width):
        widest = max(columns, key=lambda each: each.width if each.width > each.least else 0)
        widest.width = max(widest.least, widest.width - 1)


def _cell(value: object) -> Text:
    match value:
        case None:
            return Text()
        case Text():
            return value
        case int():
            return Text(f"{value:,}")
        case _:
            return Text(one_line(str(value)))


def _is_numeric(cells: Sequence[object]) -> bool:
    numbers = [str(each).replace(",", "").isdigit() for each in cells if each is not None]
    return bool(numbers) and all(numbers)


def fields(rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values beside each other; values of several lines stand below each other."""
    known = [(name, str(value)) for name, value in rows if value not in (None, "", 0)]
    width = max((len(name) for name, _ in known), default=0) + _GAP
    for name, value in known:
        wrapped = textwrap.fill(
            one_line(value),
            screen_width(),
            initial_indent=" " * width,
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        _print(Text.assemble((f"{name:<{width}}", "dim"), wrapped[width:]))


# --- what takes time --------------------------------------------------------------------------


@contextlib.contextmanager
def working(text: str) -> Generator[None]:
    """Tell whoever looks at the terminal what it is that takes time."""
    progress(f"{text} …")
    try:
        yield
    finally:
        progress("")


def progress(text: str) -> None:
    """Replace the last line of the terminal; where there is none, nothing is said."""
    if sys.stderr.isatty():
        cut = Text(one_line(text))
        cut.truncate(screen_width() - 1, overflow="ellipsis")
        print(f"\r\x1b[K{cut.plain}", end="", file=sys.stderr, flush=True)
