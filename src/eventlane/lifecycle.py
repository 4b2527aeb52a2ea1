"""The life of whole groups: where they go on, what they are called, that they end."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from eventlane.errors import ConfigError, Refused
from eventlane.operating import Operating
from eventlane.operation import checked_reason
from eventlane.subscription import check_group
from eventlane.views import RemovalPlan, ResetPlan, ResetTo

__all__ = ["Lifecycle"]

_EXPECTED = (
    "expected 'first', 'now', a time with a time zone, or offsets as in {('orders', 3): 1200}"
)


class Lifecycle(Operating):
    """The part of `App` that looks after groups, beside their dead letters."""

    async def reset(
        self,
        group: str,
        to: ResetTo,
        *,
        reason: str = "",
        actor: str | None = None,
        dry_run: bool = False,
    ) -> ResetPlan:
        """Have a group go on somewhere else: back to handle events again, or ahead of some.

        A new era of its account begins there: all counters start at 0, and failed attempts and
        parked events are dropped (parked events from there on come again from the log). Open dead
        letters stay open, count no more and hold up nothing: their lanes go on, as if they had been
        made under `on_dead="continue"`, and one that is being replayed is open again. A paused
        group stays paused.

        It may be done while the group is handled: a running handler is cancelled, nothing of the
        era before can be settled any more, and the same processes go on from the new place.

        Args:
            group: Which.
            to: `"first"` (the first event that is kept), `"now"` (the end of the log), a time with
                a time zone (what the log took from then on), or offsets for some partitions, as in
                `{("orders", 3): 1200}`; the other partitions stay as they are.
            reason: Kept with the change; only a dry run needs none.
            actor: Who does it; the app and its host by default.
            dry_run: Change nothing, and say what would be.

        Returns:
            What becomes of each partition: how many events come again, are passed over, and so on.

        Raises:
            NotFound: There is no such group, or it does not consume such a partition.
            Refused: The log does not have that offset; the message has the range.
            ConfigError: `to` is something else; nothing was changed.
            Unavailable: The app is not connected.
        """
        _check_target(to)
        return await self._connected.reset(
            group,
            to,
            actor=actor or self._actor,
            reason=reason if dry_run else checked_reason(reason),
            dry_run=dry_run,
        )

    async def rename_group(
        self, group: str, new: str, *, reason: str, actor: str | None = None
    ) -> None:
        """Give a group another name. It keeps its positions, attempts, dead letters and history.

        Rename it in the code too, or a new group of the old name starts from its beginning. Topics
        of dead letters keep their names (`orders.old.dlq`): what dies from now on is published
        under the new one. Fingerprints are made of the group's name: those of old letters stay.

        Raises:
            NotFound: There is no such group.
            Refused: Processes are handling it, or the new name is taken; nothing was changed.
            ConfigError: The new name cannot be one of a group; nothing was changed.
            Unavailable: The app is not connected.
        """
        check_group(new, f"rename_group({group!r}, {new!r})")
        await self._connected.rename_group(
            group, new, actor=actor or self._actor, reason=checked_reason(reason)
        )

    async def remove_group(
        self,
        group: str,
        *,
        reason: str = "",
        typed_name: str | None = None,
        actor: str | None = None,
        dry_run: bool = False,
    ) -> RemovalPlan:
        """Forget a group: its positions, failed attempts, parked events and all its dead letters.

        The log stays, and the audit says who did it; nothing else can be brought back. A group of
        this name that is handled later is a new one. The topics of its dead letters stay.

        Args:
            group: Which.
            reason: Kept with the change; only a dry run needs none.
            typed_name: The group's name once more, typed by whoever is sure; the same.
            actor: Who does it; the app and its host by default.
            dry_run: Change nothing, and say what would be lost.

        Returns:
            What is lost.

        Raises:
            NotFound: There is no such group.
            Refused: The typed name is another, or processes are handling it; nothing was changed.
            Unavailable: The app is not connected.
        """
        if not dry_run and typed_name != group:
            raise Refused(
                f"remove_group({group!r}): expected typed_name={group!r}, got {typed_name!r}. What "
                "a group has cannot be brought back: dry_run=True says what that is"
            )
        return await self._connected.remove_group(
            group,
            actor=actor or self._actor,
            reason=reason if dry_run else checked_reason(reason),
            dry_run=dry_run,
        )

    async def forget_type(
        self, group: str, event_type: str, *, reason: str, actor: str | None = None
    ) -> None:
        """Forget that a group handles an event type, of which no process has a handler any more.

        What a killed process handled is remembered as long as others of its group live: a partition
        with such an event next waits for a process that has the handler. Where there will be none,
        this lets it go on, and events of that type are skipped.

        Args:
            group: Which.
            event_type: Its name, as `status` says it.
            reason: Kept with the change.
            actor: Who does it; the app and its host by default.

        Raises:
            NotFound: There is no such group, or it is not recorded with that type.
            Refused: A live process handles it; the message says which. Nothing was changed.
            Unavailable: The app is not connected.
        """
        await self._connected.forget_type(
            group, event_type, actor=actor or self._actor, reason=checked_reason(reason)
        )

    async def backup(self, directory: str) -> int:
        """Copy the broker, as it is at one moment, into a directory of its own, while it is used.

        The copy is a broker: `App("embedded:DIRECTORY")` opens it. What was acknowledged before
        the call is in it, each event with its outcome. Publishers and handlers wait for nothing.

        Durability: the copy is durable when this returns; before, the directory has no broker.

        Args:
            directory: Where to; it is made, and must have no broker yet.

        Returns:
            The size of the copy in bytes.

        Raises:
            Refused: The directory has a broker already; nothing was written.
            StorageError: The copy cannot be written; there is none.
            Unavailable: The app is not connected.
        """
        return await self._connected.backup(directory)


def _check_target(to: ResetTo) -> None:
    given: object = to
    if isinstance(to, datetime):
        if to.tzinfo is None:
            raise ConfigError(
                f"reset(to={to!r}): {_EXPECTED}, got a time without one; add tzinfo=UTC, or "
                "what it was meant in."
            )
    elif isinstance(to, Mapping):
        _check_offsets(to)
    elif given not in ("first", "now"):
        raise ConfigError(f"reset(to={to!r}): {_EXPECTED}.")


def _check_offsets(offsets: Mapping[Any, Any]) -> None:
    if not offsets:
        raise ConfigError(f"reset(to={{}}): {_EXPECTED}, got none.")
    for each in offsets.items():
        match each:
            case ((str(), int()), int()):
                continue
            case (place, offset):
                raise ConfigError(f"reset(to=…): {_EXPECTED}, got {{{place!r}: {offset!r}}}.")
