"""What dead letters are looked for by: conditions, as an object or as a line of text."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eventlane.config import checked_options
from eventlane.errors import ConfigError, EventRefused
from eventlane.event import Key, key_bytes
from eventlane.wording import did_you_mean, nearest

__all__ = ["Query", "query_of"]

_FIELDS = {
    "group": "group",
    "type": "type",
    "exc": "exception",
    "handler": "handler",
    "key": "key",
    "topic": "topic",
    "fp": "fingerprint",
    "version": "app_version",
    "since": "since",
    "until": "until",
}
"""The field of each qualifier."""
_TIMES = ("since", "until")
_EXAMPLE = "exc:KeyError key:c-991"
_WORD = re.compile(r'\s*(?:([^\s":]*):)?("(?:[^"\\]|\\.)*"|[^\s"]+)(?=\s|$)')
_ESCAPED = re.compile(r"\\(.)")


@checked_options
@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Conditions on dead letters; a letter has to meet all of them.

    As text: `exc:KeyError key:c-991 since:2026-11-25T10:00`, with values in quotes where they hold
    spaces. The qualifiers are group, type, exc, handler, key, topic, fp, version, since and until.

    Raises:
        ConfigError: There is no such condition, or a value is none that it can be.
    """

    group: str | None = None
    type: str | None = None
    """The name of the event type."""
    exception: str | None = None
    """The class of the error, without its module."""
    handler: str | None = None
    key: Key | None = None
    topic: str | None = None
    fingerprint: str | None = None
    app_version: str | None = None
    since: datetime | str | None = None
    """Died at this time or later. A time without a zone is in UTC."""
    until: datetime | str | None = None
    """Died before this time."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if value is None:
                continue
            if name in _TIMES:
                _time(name, value)
            elif name == "key":
                try:
                    key_bytes(value)
                except EventRefused as error:
                    raise ConfigError(f"Query(key={value!r}): {error}") from None
            elif not isinstance(value, str) or not value:
                raise ConfigError(f"Query({name}={value!r}): expected some text, or None.")

    @property
    def key_bytes(self) -> bytes | None:
        """The key as a message has it."""
        return None if self.key is None else key_bytes(self.key)

    @property
    def since_ms(self) -> int | None:
        """The wall time of `since`."""
        return None if self.since is None else _time("since", self.since)

    @property
    def until_ms(self) -> int | None:
        """The wall time of `until`."""
        return None if self.until is None else _time("until", self.until)

    def __str__(self) -> str:
        """The text that gives this query."""
        words: list[str] = []
        for qualifier, name in _FIELDS.items():
            value: Any = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, datetime):
                value = value.isoformat()
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            words.append(f"{qualifier}:{_quoted(text)}")
        return " ".join(words)


def query_of(query: Query | str) -> Query:
    """The query that a text means.

    Raises:
        ConfigError: It is none; the message says what to write instead.
    """
    if isinstance(query, Query):
        return query
    if not isinstance(query, str):
        raise ConfigError(f"query={query!r}: expected a Query, or text as in {_EXAMPLE!r}.")
    found: dict[str, str] = {}
    for qualifier, value in _words(query):
        name = _FIELDS.get(qualifier)
        if name is None:
            # By the name of the field, too, as it is in `Query`.
            qualifiers = {field: each for each, field in _FIELDS.items()}
            meant = nearest(qualifier, (*_FIELDS, *qualifiers)) or qualifier
            meant = qualifiers.get(meant, meant)
            raise ConfigError(
                f"query {query!r}: {qualifier!r} is no qualifier. {did_you_mean(meant, _FIELDS)}"
            )
        if name in found:
            raise ConfigError(
                f"query {query!r}: expected {qualifier!r} once, got it twice. All conditions of a "
                "query have to be met; ask twice for the letters of two."
            )
        found[name] = value
    if not found:
        raise ConfigError(f"query {query!r}: expected conditions, as in {_EXAMPLE!r}, got none.")
    return Query(**found)


def _words(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    rest = text.rstrip()
    while at < len(rest):
        word = _WORD.match(rest, at)
        if word is None:
            raise ConfigError(
                f"query {text!r}: expected qualifier:value from {rest[at:].strip()!r} on, with the "
                f'value in double quotes where it holds spaces, as in handler:"my handler".'
            )
        qualifier, value = word.groups()
        if qualifier is None and value.endswith(":"):
            raise ConfigError(
                f"query {text!r}: expected something after {value}, as in {_EXAMPLE!r}."
            )
        if qualifier is None:
            raise ConfigError(
                f"query {text!r}: expected qualifier:value, got the bare word {value!r}. Say what "
                f"it is, as in exc:{value} or key:{value}. Qualifiers: {', '.join(_FIELDS)}."
            )
        if value.startswith('"'):
            value = _ESCAPED.sub(r"\1", value[1:-1])
        yield qualifier, value
        at = word.end()


def _quoted(text: str) -> str:
    if text and not re.search(r'[\s"\\]', text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _time(name: str, value: object) -> int:
    """A wall time in milliseconds."""
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
    if not isinstance(moment, datetime):
        raise ConfigError(
            f"Query({name}={value!r}): expected a time, as in '2026-11-25T10:00' (UTC), "
            "'2026-11-25T10:00+01:00' or a datetime."
        )
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
