"""What commands take, and how one that is mistyped is answered: with what may have been meant."""

import argparse
import getpass
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from uuid import UUID

from eventlane import App, ConfigError, Query, Refused
from eventlane.cli.output import show_line
from eventlane.wording import near

__all__ = [
    "NotConfirmed",
    "Parser",
    "actor_of",
    "add_change",
    "add_conditions",
    "add_json",
    "add_limit",
    "add_place",
    "add_selection",
    "add_state",
    "command",
    "count",
    "id_of",
    "is_whole",
    "place",
    "query_of",
    "rate",
    "reason_of",
    "refuse_unless_typed",
    "selection_of",
    "share",
    "state_of",
]

_CHOICE = re.compile(r"invalid choice: '(.*?)'.*\(choose from (.*)\)")
_USAGE = 2
_DIGITS_MAX = 18


class Parser(argparse.ArgumentParser):
    """Says what was meant where it can, and where the rest is explained."""

    _wants_json = False

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """As it was, but what is left over is answered by the command that does not know it."""
        words: Sequence[str] = sys.argv[1:] if given[0] is None else given[0]
        self._wants_json = "--json" in words
        options, rest = super().parse_known_args(*given, **named)
        if rest and rest[0].startswith("-"):
            known = re.findall(r"--[\w-]+", self.format_help())
            self.error(f"there is no option {rest[0]!r}.{_meant(rest[0], known)}")
        if rest:
            self.error(f"expected nothing more, got {rest[0]!r}.")
        return options, rest

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, to programs as JSON too, and end with exit code 2."""
        if message.startswith("the following arguments are required"):
            self._show(message)
            self.print_help(sys.stderr)
            self.exit(_USAGE, f"\n{self.prog}: {message}\n")
        found = _CHOICE.search(message)
        if found is not None:
            known = re.findall(r"[\w-]+", found[2])
            message = (
                f"expected one of {', '.join(known)}, got {found[1]!r}.{_meant(found[1], known)}"
            )
        self._show(message)
        self.exit(_USAGE, f"{self.prog}: {message}\n{self.prog} --help says what there is.\n")

    def _show(self, message: str) -> None:
        if self._wants_json:
            show_line({"error": ConfigError.__name__, "message": f"{self.prog}: {message}"})


def _meant(word: str, known: Sequence[str]) -> str:
    # Who follows it changes something: `reset` is like `restore` by 0.67, `remove` like `prove` by
    # 0.73.
    return near(word, known, likeness=0.75)


def add_place(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Where the broker is."""
    parser.add_argument(
        "--broker", metavar="URL", default=default, help="embedded:DIR; else EVENTLANE_BROKER"
    )
    parser.add_argument(
        "--app", metavar="MODULE:APP", default=default, help="take the broker from an app"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Every command has it, and takes the broker before and after its name."""
    parser.add_argument("--json", action="store_true", help="print JSON, with the API's names")
    add_place(parser, default=argparse.SUPPRESS)


def add_limit(parser: argparse.ArgumentParser, *, default: int | None, help: str) -> None:
    """How much is printed."""
    parser.add_argument("--limit", metavar="N", type=count, default=default, help=help)


def count(text: str) -> int:
    """One or more."""
    if not is_whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def is_whole(text: str) -> bool:
    """Whether it is a whole number, of a size that a database can hold."""
    return text.isdecimal() and len(text) <= _DIGITS_MAX


def add_state(parser: argparse.ArgumentParser, states: Sequence[str], *, default: str) -> None:
    """What is listed; the states are those of the API."""
    known = f"{', '.join(states)} or all"
    parser.add_argument("--state", default=default, help=f"{known} (default: %(default)s)")


def state_of(options: argparse.Namespace, states: Sequence[str]) -> Any:
    """The state that was asked for; None for all.

    Raises:
        ConfigError: There is none such.
    """
    known = (*states, "all")
    if options.state not in known:
        raise ConfigError(
            f"--state {options.state}: expected one of {', '.join(known)}."
            f"{near(options.state, known)}"
        )
    return None if options.state == "all" else options.state


def rate(text: str) -> float:
    """So many in a second."""
    return _number(text, "a number above 0", lambda number: 0 < number < math.inf)


def share(text: str) -> float:
    """A part of all."""
    return _number(text, "a share from 0 to 1", lambda number: 0 <= number <= 1)


def _number(text: str, expected: str, is_one: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not is_one(number):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


# --- who and why ------------------------------------------------------------------------------


def add_change(parser: argparse.ArgumentParser) -> None:
    """What every change is kept with."""
    parser.add_argument(
        "--reason", metavar="WHY", help="kept with your name; asked for if left out"
    )
    parser.add_argument("--actor", metavar="WHO", help="who you are (default: your login and host)")


def actor_of(options: argparse.Namespace) -> str:
    """Who does it."""
    if options.actor:
        return str(options.actor)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container runs users that have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{os.uname().nodename}"


def reason_of(options: argparse.Namespace) -> str:
    """Why it is done; asked for where somebody can answer.

    Raises:
        ConfigError: There is none.
    """
    reason: str = options.reason or ""
    if not reason.strip() and _is_attended():
        reason = _ask("Why? It is kept with your name: ")
        if not reason.strip():
            raise ConfigError("expected a reason, got none. Nothing was changed.")
    if not reason.strip():
        raise ConfigError(
            "expected a reason. It is kept with the change, for whoever asks later why it was "
            'made: add --reason "…".'
        )
    return reason


class NotConfirmed(Refused):
    """Nobody has said to be sure."""

    def __init__(self, message: str, plan: object) -> None:
        super().__init__(message)
        self.plan = plan
        """What would have been done."""


def refuse_unless_typed(given: str | None, *, group: str, option: str, plan: object) -> None:
    """Have the name of a group typed by whoever is sure of a plan.

    Raises:
        NotConfirmed: It was not.
    """
    if given is None and _is_attended():
        given = _ask(f"Type the name of the group to go on ({group}): ")
    if given is None:
        raise NotConfirmed(
            f"expected the name of the group once more, since this cannot be undone: add {option} "
            f"{shlex.quote(group)}. Nothing was changed.",
            plan,
        )
    if given != group:
        raise NotConfirmed(
            f"expected {group!r} to be typed, got {given!r}. Nothing was changed.", plan
        )


def _is_attended() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(question: str) -> str:
    # The event loop would only note Ctrl-C, and the question would stay.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()
    finally:
        signal.signal(signal.SIGINT, before)


# --- which dead letters -----------------------------------------------------------------------


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """What dead letters are looked for by; all conditions have to be met."""
    parser.add_argument("--group", help="those of this group")
    parser.add_argument(
        "--query",
        metavar="Q",
        help="those that meet all of it, as in 'exc:KeyError key:c-991 since:2026-11-25T10:00'; by "
        "group, type, exc, handler, key, topic, fp, version, since, until",
    )
    parser.add_argument("--fingerprint", metavar="F", help="those of this cause")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Which dead letters a change is about."""
    parser.add_argument("ids", metavar="ID", nargs="*", help="of dead letters")
    add_conditions(parser)


def query_of(options: argparse.Namespace) -> str | None:
    """The conditions as one query.

    Raises:
        ConfigError: One of them is empty.
    """
    if options.query is not None and not options.query.strip():
        raise ConfigError(f"--query {options.query!r}: expected conditions, as in 'exc:KeyError'.")
    named = str(Query(group=options.group, fingerprint=options.fingerprint))
    return " ".join(filter(None, (options.query, named))) or None


def selection_of(options: argparse.Namespace) -> list[UUID] | str:
    """The dead letters that a change is about: ids, or a query.

    Raises:
        ConfigError: There are none, or both.
    """
    query = query_of(options)
    if bool(options.ids) == (query is not None):
        got = "both" if options.ids else "neither"
        raise ConfigError(
            "expected ids of dead letters, or which ones by --query, --fingerprint or --group; "
            f"got {got}. `{command(options, 'failures', 'list')}` has them."
        )
    return [id_of(each) for each in options.ids] if query is None else query


def id_of(text: str) -> UUID:
    """The id that an operator typed.

    Raises:
        ConfigError: It is none.
    """
    try:
        return UUID(text)
    except ValueError:
        hint = f" A query is given by --query {shlex.quote(text)}." if ":" in text else ""
        raise ConfigError(
            f"expected an id, as in 5d645a78-7547-876d-b15a-c4582979d691, got {text!r}.{hint}"
        ) from None


def place(app: App) -> str:
    """Where its broker is, without secrets."""
    return re.sub(r"//[^@/]*@", "//", app.url)


def command(options: argparse.Namespace, *words: object) -> str:
    """A command to copy, for the broker that this one was given."""
    given = [
        word
        for option in ("broker", "app")
        if getattr(options, option, None)
        for word in (f"--{option}", getattr(options, option))
    ]
    return shlex.join(["eventlane", *given, *map(str, words)])
