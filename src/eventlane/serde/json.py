"""JSON: an event is the object of its fields, written and read by msgspec (pydantic by itself).

An event is refused unless its bytes give the same event again. That one rule covers a value of a
wrong type, a broken constraint, NaN (JSON has only null for it), bytes in a text field (they
would arrive as base64 text) and a subclass whose own fields nobody would read. It costs a typed
decode and a comparison: with a Struct of six fields 0.60 us instead of 0.17 us for the encode
alone, and 0.50 us without the comparison. Checks that are generated as source code would make it
0.28 us, for flat types without constraints; that is not worth a second definition of what a type
allows. What is wrong with an event is worked out only once it failed, in `unwritable.py`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import msgspec

from eventlane.errors import NotSerialisable, Undecodable
from eventlane.serde.plain import plain_check
from eventlane.serde.unreadable import HINTS, explain_bytes
from eventlane.serde.unwritable import explain_event, same
from eventlane.serde.wire import is_pydantic, reads_one_form, refuse_unusable, wire

__all__ = ["JsonCodec"]

T = TypeVar("T")

_LINES_MAX = 500
"""Events that are written at once: few enough that they do not set off the cycle collector."""


class JsonCodec:
    """Writes and reads events as JSON.

    Fields that the type does not know are ignored when reading, unless the type forbids them, so
    that a producer may be newer than its consumers.

    Pydantic models are read as their own settings say, so a lax model takes "2" for 2. They are
    written by alias, and without computed fields, as they read it.

    A tuple is accepted for a field that is declared as a list or a sequence: JSON has one array.
    Such events, and those of classes that compare by identity (`eq=False`), are compared part by
    part in Python: right, and slower.
    """

    @property
    def content_type(self) -> str:
        """The media type of JSON."""
        return "application/json"

    def encoder(self, cls: type[T]) -> Callable[[T], bytes]:
        """Builds the function that gives an event's bytes: see `Codec`."""
        refuse_unusable(cls)
        encode, decode = wire(cls, pydantic=is_pydantic(cls))
        one_form = reads_one_form(cls)
        plain = plain_check(cls)

        def encoded(event: T) -> bytes:
            try:
                value = encode(event)
                if plain is not None and plain((event,)):
                    return value
                found = decode(value)
                # Equal is not yet of the type: 7.5 equals the Decimal that is read from it. And
                # unequal is not yet wrong: equality may go by identity.
                if found == event and (one_form or encode(found) == value):
                    return value
                if same(event, found):
                    return value
            except MemoryError:
                raise  # the machine's trouble and not the event's
            except Exception as error:  # the type's own code runs in here too
                raise NotSerialisable(explain_event(event, cls, error)) from error
            raise NotSerialisable(explain_event(event, cls, None))

        return encoded

    def encoder_of_many(self, cls: type[T]) -> Callable[[Sequence[T]], list[bytes]]:
        """Builds the function that gives the bytes of each of many events: see `Codec`."""
        encoded = self.encoder(cls)
        if is_pydantic(cls) or not reads_one_form(cls):
            return lambda events: list(map(encoded, events))
        plain = plain_check(cls)
        encode_lines = msgspec.json.Encoder().encode_lines
        decode_lines = msgspec.json.Decoder(cls).decode_lines

        def encoded_many(events: Sequence[T]) -> list[bytes]:
            # One call for a part instead of one for each event: 230 of 760 ns less for each
            # (benchmarks, publish_many).
            found: list[bytes] = []
            for start in range(0, len(events), _LINES_MAX):
                part = events[start : start + _LINES_MAX]
                values: list[bytes] = []
                try:
                    lines = encode_lines(part)
                    values = lines.split(b"\n")
                    values.pop()
                    # JSON has no line break within a value, unless an event brought its own JSON
                    # (`msgspec.Raw`): then the count differs.
                    all_good = len(values) == len(part) and (
                        (plain is not None and plain(part)) or decode_lines(lines) == part
                    )
                except MemoryError:
                    raise  # the machine's trouble and not the events'
                except Exception:  # the types' own code runs in here too
                    all_good = False
                # If not, they go one by one: the one that is refused is named.
                found += values if all_good else map(encoded, part)
            return found

        return encoded_many

    def decoder(self, cls: type[T]) -> Callable[[bytes], T]:
        """Builds the function that gives the event of some bytes: see `Codec`."""
        refuse_unusable(cls)
        decode: Callable[[bytes], T] = wire(cls, pydantic=is_pydantic(cls)).decode

        def decoded(value: bytes) -> T:
            try:
                return decode(value)
            except MemoryError:
                raise  # or the machine's trouble would make a dead letter of a good event
            except Exception as error:  # the type's own code runs in here too
                stage: Literal["decode", "validate"] = "validate" if _is_json(value) else "decode"
                reason = explain_bytes(cls, error, stage)
            # Raised out here, and so without a cause: the library's message may quote the payload.
            raise Undecodable(reason, stage=stage, hint=HINTS[stage])

        return decoded

    def raw_decoder(self, cls: type[T]) -> Callable[[bytes], T]:
        """Builds the function that gives the event of some bytes, without words: see `Codec`."""
        refuse_unusable(cls)
        decode: Callable[[bytes], T] = wire(cls, pydantic=is_pydantic(cls)).decode
        return decode


def _is_json(value: bytes) -> bool:
    # Asked only after a failure: a typed decode stops at the first wrong field, before it has
    # seen whether what follows is JSON.
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True
