"""Who of a group's members owns which of its partitions: evenly, and moving as few as it can.

Each member computes the same from the same rows, so that nobody has to lead. Who owns more than its
share gives the rest up; who owns less takes what is free. What may be moved to the same members is
shared out together: usually all of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Claim", "Place", "Share", "share_of"]

Place = tuple[str, int]
"""Topic, partition."""


class Claim(NamedTuple):
    """A partition, its owner, and who may own it."""

    place: Place
    owner: str | None
    """None where nobody alive owns it."""
    members: frozenset[str]
    """Live members that can handle it."""


class Share(NamedTuple):
    """What a member is to do."""

    take: list[Place]
    """Free partitions that it may take."""
    give_up: list[Place]
    """Partitions of its own that others wait for."""


def share_of(member: str, claims: Sequence[Claim]) -> Share:
    """What a member is to take and to give up; of many partitions the first are kept and taken."""
    together: dict[frozenset[str], list[Claim]] = {}
    for claim in sorted(claims):
        if member in claim.members:
            together.setdefault(claim.members, []).append(claim)
    share = Share([], [])
    for members, alike in together.items():
        count = _count(member, members, alike)
        own = [claim.place for claim in alike if claim.owner == member]
        share.give_up.extend(own[count:])
        free = [claim.place for claim in alike if claim.owner is None]
        share.take.extend(free[: max(0, count - len(own))])
    return share


def _count(member: str, members: frozenset[str], claims: Sequence[Claim]) -> int:
    """How many of these a member is to own."""
    each, left = divmod(len(claims), len(members))
    owned = dict.fromkeys(members, 0)
    for claim in claims:
        if claim.owner in owned:
            owned[claim.owner] += 1
    # Who has most already keeps one more, so that nothing moves without need.
    ranked = sorted(members, key=lambda one: (-owned[one], one))
    return each + (ranked.index(member) < left)
