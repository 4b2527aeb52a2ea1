"""Sharing out partitions: evenly, completely, and without moving more than is needed."""

from hypothesis import given
from hypothesis import strategies as st

from eventlane.sharing import Claim, Place, share_of

MEMBERS = st.sets(st.sampled_from("abcdefg"), min_size=1)


def claims(owners: dict[Place, str | None], members: set[str]) -> list[Claim]:
    return [Claim(place, owner, frozenset(members)) for place, owner in owners.items()]


def settled(owners: dict[Place, str | None], members: set[str]) -> tuple[dict[Place, str], int]:
    """What comes of it when members act one after the other; and how many partitions moved."""
    now = {place: owner if owner in members else None for place, owner in owners.items()}
    moved = 0
    for _ in range(20):
        before = dict(now)
        for member in sorted(members):
            share = share_of(member, claims(now, members))
            for place in share.give_up:
                now[place] = None
                moved += 1
            for place in share_of(member, claims(now, members)).take:
                now[place] = member
        if now == before:
            return {place: owner for place, owner in now.items() if owner}, moved
    raise AssertionError(f"they go on for ever: {now}")


@given(
    st.lists(st.sampled_from([None, *"abcdefghi"]), max_size=40),
    MEMBERS,
)
def test_all_is_owned_and_evenly_whoever_came_and_went(
    owned: list[str | None], members: set[str]
) -> None:
    owners: dict[Place, str | None] = {("t", number): owner for number, owner in enumerate(owned)}
    result, moved = settled(owners, members)
    assert result.keys() == owners.keys()
    counts = [list(result.values()).count(member) for member in members]
    assert max(counts) - min(counts) <= 1
    # No more than what somebody had beyond an even share.
    share = -(-len(owners) // len(members))
    surplus = [max(0, owned.count(member) - share + 1) for member in members]
    assert moved <= sum(surplus)


def test_what_is_even_stays_where_it_is() -> None:
    owners: dict[Place, str | None] = {("t", 0): "b", ("t", 1): "a", ("t", 2): "b"}
    assert settled(owners, {"a", "b"}) == (owners, 0)


def test_a_second_member_gets_half() -> None:
    owners: dict[Place, str | None] = {("t", number): "a" for number in range(8)}
    share = share_of("a", claims(owners, {"a", "b"}))
    assert share.give_up == [("t", number) for number in range(4, 8)]
    assert share_of("b", claims(owners, {"a", "b"})) == ([], [])


def test_a_partition_that_only_one_can_handle_is_his_beyond_an_even_share() -> None:
    both, one = frozenset({"a", "b"}), frozenset({"b"})
    found = [Claim(("t", 0), "a", both), Claim(("t", 1), "b", both), Claim(("t", 2), None, one)]
    assert share_of("a", found) == ([], [])
    assert share_of("b", found) == ([("t", 2)], [])
