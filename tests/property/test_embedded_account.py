"""P8 on the embedded broker: the account balances after everything that may happen to an event."""

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventlane.brokers import connect
from eventlane.settlement import Acquired, LetterChange
from eventlane.testing.stage import GROUP, TOPIC, letter, record, settlement, spec
from eventlane.topic import Topic

PARTITIONS = 2
OUTCOMES = st.lists(st.sampled_from(["done", "skipped", "dead", "parked"]), min_size=1, max_size=6)


class Partition:
    """What became of each offset, as a test sees it."""

    def __init__(self) -> None:
        self.outcomes: dict[int, str] = {}
        self.end = 0

    def watermark(self) -> int:
        return next(offset for offset in range(self.end + 1) if offset not in self.outcomes)

    def settled(self) -> list[tuple[int, int]]:
        above = [offset for offset in sorted(self.outcomes) if offset > self.watermark()]
        return [(offset, offset + 1) for offset in above]


class AccountModel(RuleBasedStateMachine):
    """Owners, operators and other members act in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.broker: Any = None
        self.consumer: Any = None
        self.owned: dict[int, Acquired] = {}
        self.partitions = [Partition() for _ in range(PARTITIONS)]

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 10))

    @initialize()
    def open(self) -> None:
        self.broker = self.run(connect("embedded::memory:"))
        self.run(self.broker.ensure_topic(Topic(TOPIC, partitions=PARTITIONS)))
        self.join()

    def join(self) -> None:
        self.consumer = self.run(self.broker.join(spec()))
        self.owned = {}
        while len(self.owned) < PARTITIONS:
            for change in self.run(self.consumer.changes()):
                if isinstance(change, Acquired):
                    self.owned[change.partition] = change

    @rule(keys=st.lists(st.sampled_from("abcd"), min_size=1, max_size=8))
    def publish(self, keys: list[str]) -> None:
        self.run(self.broker.append([(TOPIC, [record(key, key) for key in keys])]))
        for partition, (_, end) in enumerate(self.run(self.broker.ends(TOPIC))):
            self.partitions[partition].end = end

    @rule(which=st.integers(0, PARTITIONS - 1), outcomes=OUTCOMES, random=st.randoms())
    def settle(self, which: int, outcomes: list[str], random: Any) -> None:
        own, partition = self.owned[which], self.partitions[which]
        free = [o for o in range(partition.end) if o not in partition.outcomes]
        random.shuffle(free)
        new = dict(zip(sorted(free[: len(outcomes)]), outcomes, strict=False))
        parked = [o for o, outcome in partition.outcomes.items() if outcome == "parked"]
        ended = dict(zip(parked, outcomes, strict=False)) if random.random() < 0.5 else {}
        ended = {o: outcome for o, outcome in ended.items() if outcome != "parked"}
        partition.outcomes |= new | ended
        both = [*new.items(), *ended.items()]
        self.run(
            self.consumer.settle(
                [
                    settlement(
                        own,
                        partition.watermark(),
                        settled=partition.settled(),
                        done=sum(outcome == "done" for _, outcome in both),
                        skipped=sum(outcome == "skipped" for _, outcome in both),
                        dead=[letter(own, o, record("a", "x")) for o, x in both if x == "dead"],
                        parked=[
                            (b"a", o, record("a", "x")) for o, x in new.items() if x == "parked"
                        ],
                        unparked=len(ended),
                    )
                ]
            )
        )

    @rule(chosen=st.integers(1, 3), resolved=st.sampled_from(["done", "skipped", "dead"]))
    def replay(self, chosen: int, resolved: str) -> None:
        letters = self.run(self.broker.dead_letters())
        if not letters:
            return
        letters = [each for each in letters if each.partition == letters[0].partition]
        letters.sort(key=lambda each: each.offset)
        ids = [each.id for each in letters[:chosen]]
        self.run(self.broker.replay(ids, actor="a", reason="r"))
        replaying = self.run(self.broker.dead_letters(state="replaying"))
        own, partition = self.owned[letters[0].partition], self.partitions[letters[0].partition]
        changes = [
            LetterChange(
                each.id,
                each.offset,
                b"a",
                "open" if resolved == "dead" else "resolved",
                resolved,  # type: ignore[arg-type]  # drawn from its values
                each if resolved == "dead" else None,
            )
            for each in replaying
        ]
        self.run(
            self.consumer.settle(
                [
                    settlement(
                        own, partition.watermark(), settled=partition.settled(), letters=changes
                    )
                ]
            )
        )
        for each in replaying:
            partition.outcomes[each.offset] = resolved

    @rule()
    def archive(self) -> None:
        letters = self.run(self.broker.dead_letters(limit=1))
        if letters:
            self.run(self.broker.archive([letters[0].id], actor="a", reason="r"))
            self.partitions[letters[0].partition].outcomes[letters[0].offset] = "archived"

    @rule()
    def another_member_goes_on(self) -> None:
        self.run(self.consumer.leave())
        self.join()
        for which, partition in enumerate(self.partitions):
            assert self.owned[which].watermark == partition.watermark()
            assert list(self.owned[which].settled) == partition.settled()

    @precondition(lambda self: self.consumer is not None)
    @invariant()
    def the_account_balances(self) -> None:
        account = self.run(self.broker.status()).groups[GROUP]
        assert account.balances, account
        outcomes = [o for each in self.partitions for o in each.outcomes.values()]
        for name in ("done", "skipped", "dead", "parked", "archived"):
            assert getattr(account, name) == outcomes.count(name), (name, account)
        assert account.entered == sum(each.end for each in self.partitions)
        assert account.open == account.entered - len(outcomes)

    def teardown(self) -> None:
        if self.broker is not None:
            self.run(self.broker.aclose())
        self.loop.close()


TestAccountModel = AccountModel.TestCase
TestAccountModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
