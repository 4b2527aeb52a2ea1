"""How a broker of a backend is ended as its process would be by kill -9, within one process."""

from collections.abc import Sequence
from typing import Any

from eventlane.broker import Broker, Consumer


async def kill_embedded(broker: Broker, consumers: Sequence[Consumer]) -> None:
    """Free the locks by which its members live; in the file they are owners still."""
    opened: Any = broker
    members: Any = consumers
    for member in members:
        member.has_left = True  # so that it says nothing as it is closed
        opened._watch.watchers.pop(member, None)
        member._wake()
        opened._members.leave(member._member)
