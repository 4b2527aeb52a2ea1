"""A check-up: of the broker that a URL names, and of an app against it."""

from collections.abc import Sequence
from pathlib import Path

from eventlane.brokers import directory_of
from eventlane.config import Limits
from eventlane.errors import ConfigError, StorageError
from eventlane.subscription import Subscription, plan_groups
from eventlane.topics import Topics
from eventlane.views import Finding

__all__ = ["examine"]


def examine(
    url: str,
    subscriptions: Sequence[Subscription],
    *,
    app: str,
    topics: Topics,
    durability: str | None,
    limits: Limits,
    now_ms: int,
    full: bool,
) -> list[Finding]:
    """See `App.doctor`. Blocks, so it wants a thread."""
    directory = directory_of(url)
    if directory is None:
        raise ConfigError(
            f"doctor: expected a broker with a directory, got {url!r}, which each process has for "
            "itself."
        )
    try:
        is_there = (Path(directory) / "eventlane.db").is_file()
    except OSError as error:
        raise StorageError(
            f"doctor: expected a directory that can be read, got {error.strerror} at "
            f"{Path(directory).absolute()}; run it as the user that the service runs as."
        ) from error
    if not is_there:
        raise ConfigError(
            f"doctor: expected a directory with a broker (eventlane.db), got none at "
            f"{Path(directory).absolute()}."
        )
    # Here, so that whoever does not ask pays nothing for it.
    from eventlane.brokers.embedded.checkup import check_up  # noqa: PLC0415  # see above
    from eventlane.brokers.embedded.declared import Declared  # noqa: PLC0415  # the same

    wrong: list[Finding] = []
    declared: Declared | None = None
    if subscriptions:
        try:
            plans = plan_groups(subscriptions, cpus=1)
            for subscription in subscriptions:
                for kind in subscription.event_types:
                    topics.declare(kind.topic, kind.declared_at)
            declared = Declared(
                app=app,
                durability=durability,
                specs=[plan.spec(app, limits) for plan in plans.values()],
                topics={
                    name: topics.wanted(name).partitions
                    for plan in plans.values()
                    for name in plan.topics
                },
                creates_topics=topics.creates,
            )
        except ConfigError as error:
            wrong.append(Finding(level="error", check="app", message=str(error)))
    found = check_up(
        Path(directory),
        url=url,
        limits=limits,
        now_ms=now_ms,
        full=full,
        declared=declared,
    )
    return [*found, *wrong]
