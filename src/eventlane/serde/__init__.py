"""How events become bytes and bytes become events: one codec per format, behind one seam."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from eventlane.errors import ConfigError
from eventlane.event import EventType

__all__ = ["Codec", "Codecs"]

T = TypeVar("T")


class Codec(Protocol):
    """Builds, for one type, the functions that write and read its events.

    Building is slow and refuses what can be refused at start; what is built is fast, safe to call
    from several threads, and kept by the caller.
    """

    @property
    def content_type(self) -> str:
        """The media type that messages say, as in `application/json`."""
        ...

    def encoder(self, cls: type[T]) -> Callable[[T], bytes]:
        """Builds the function that gives an event's bytes.

        Calling it raises `NotSerialisable`, which names the field, what was expected and what
        came, for every event that would not come back from its bytes as it is.

        Raises:
            ConfigError: no event of this type could be written; the field is named.
        """
        ...

    def encoder_of_many(self, cls: type[T]) -> Callable[[Sequence[T]], list[bytes]]:
        """Builds the function that gives the bytes of each of many events, in order.

        Calling it raises what `encoder` says, for the first event that cannot be written.

        Raises:
            ConfigError: no event of this type could be written; the field is named.
        """
        ...

    def decoder(self, cls: type[T]) -> Callable[[bytes], T]:
        """Builds the function that gives the event of some bytes.

        Calling it raises `Undecodable` and nothing else; the message holds no part of the
        payload, which may be secret.

        Raises:
            ConfigError: no event of this type could be read; the field is named.
        """
        ...

    def raw_decoder(self, cls: type[T]) -> Callable[[bytes], T]:
        """Builds the same function without its words: it raises whatever the library raises.

        For the hot loop, which asks `decoder`'s function for the words once this one has failed.

        Raises:
            ConfigError: no event of this type could be read; the field is named.
        """
        ...


class Codecs:
    """The codecs of an app, by format."""

    def __init__(self, codecs: Mapping[str, Codec], *, default: str) -> None:
        """`default` is the format of types that do not say.

        Raises:
            ConfigError: There is no such format.
        """
        self._codecs = codecs
        self._default = default
        if default not in codecs:
            raise ConfigError(f"App(format={default!r}): {self._expected}")

    def of(self, declared: EventType[Any]) -> Codec:
        """The codec for a type.

        Raises:
            ConfigError: It asks for a format that there is not.
        """
        wanted = declared.format or self._default
        if wanted not in self._codecs:
            raise ConfigError(
                f"{declared.name} ({declared.declared_at}) has format={wanted!r}: {self._expected}"
            )
        return self._codecs[wanted]

    @property
    def _expected(self) -> str:
        return f"expected {' or '.join(map(repr, self._codecs))}. Avro is not in this version."
