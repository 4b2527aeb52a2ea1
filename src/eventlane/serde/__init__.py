"""How events become bytes and bytes become events: one codec per format, behind one seam."""

from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["Codec"]

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

    def decoder(self, cls: type[T]) -> Callable[[bytes], T]:
        """Builds the function that gives the event of some bytes.

        Calling it raises `Undecodable` and nothing else; the message holds no part of the
        payload, which may be secret.

        Raises:
            ConfigError: no event of this type could be read; the field is named.
        """
        ...
