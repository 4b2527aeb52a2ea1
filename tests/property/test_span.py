"""The span against a naive model: a set of settled offsets."""

from hypothesis import given
from hypothesis import strategies as st

from eventlane.message import Record
from eventlane.settlement import Batch
from eventlane.span import SETTLED, Chunk, Span

RECORD = Record(b"0" * 16, b"k", b"v", 0, b"")


def batch(start: int, count: int) -> Batch:
    return Batch(range(start, start + count), [RECORD] * count)


def covered(runs: list[tuple[int, int]]) -> set[int]:
    return {offset for start, stop in runs for offset in range(start, stop)}


def test_what_is_settled_in_a_later_chunk_is_kept_while_an_earlier_event_is_open() -> None:
    # After a crash these would have run again, and counted twice.
    span = Span(0, ())
    span.add(batch(0, 2))
    second = span.add(batch(2, 3))
    second.flags[0] = SETTLED
    assert span.settled_runs(span.watermark) == [(2, 3)]


def test_what_a_former_owner_settled_is_kept_until_it_is_fetched_again() -> None:
    span = Span(0, ((5, 9),))
    span.add(batch(0, 2))
    assert covered(span.settled_runs(0)) == {5, 6, 7, 8}
    span.add(batch(2, 5))
    assert covered(span.settled_runs(0)) == {5, 6, 7, 8}


@given(
    start=st.integers(0, 5),
    before=st.sets(st.integers(1, 30)),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=60),
)
def test_watermark_and_runs_say_the_same_as_a_set_of_settled_offsets(
    start: int, before: set[int], steps: list[tuple[bool, int]]
) -> None:
    settled = {start + each for each in before}
    span = Span(start, tuple((each, each + 1) for each in sorted(settled)))
    chunks: list[Chunk] = []
    fetched = start
    for fetches, number in steps:
        if fetches or not chunks:
            chunks.append(span.add(batch(fetched, number % 7 + 1)))
            fetched += number % 7 + 1
        else:
            chunk = chunks[number % len(chunks)]
            index = number // len(chunks) % len(chunk.records)
            chunk.next = max(chunk.next, index + 1)
            chunk.flags[index] = SETTLED
            settled.add(chunk.offsets[index])
        watermark = span.drop_settled()
        open_ones = [each for each in range(start, fetched) if each not in settled]
        assert watermark == min(open_ones, default=fetched)
        assert covered(span.settled_runs(watermark)) == {
            each for each in settled if each >= watermark
        }
