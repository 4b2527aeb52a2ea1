"""The events of a simulated world."""

import msgspec

from eventlane.event import event

__all__ = ["TOPIC", "Bent", "Echo", "Loose", "Other", "Step"]

TOPIC = "steps"


@event(topic=TOPIC, key="key", name="step")
class Step(msgspec.Struct, frozen=True):
    """An event of a key; those of one key are numbered."""

    key: str
    number: int


@event(topic=TOPIC, name="loose")
class Loose(msgspec.Struct, frozen=True):
    """An event without a key."""

    number: int


@event(topic=TOPIC, key="key", name="other")
class Other(msgspec.Struct, frozen=True):
    """An event that no group handles."""

    key: str


@event(topic=TOPIC, key="key", name="step")
class Bent(msgspec.Struct, frozen=True):
    """What calls itself a step, and cannot be read as one."""

    key: str
    number: str


@event(topic="echoes", key="key", name="echo")
class Echo(msgspec.Struct, frozen=True):
    """What handlers publish."""

    key: str
    number: int
