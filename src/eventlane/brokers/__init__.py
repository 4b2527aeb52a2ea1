"""Brokers, by URL. A backend's module is imported when its URL is used, and not before."""

import re
import sys

from eventlane.broker import Broker
from eventlane.clock import Clock, SystemClock
from eventlane.config import Limits
from eventlane.errors import ConfigError
from eventlane.wording import near

__all__ = ["connect", "directory_of", "redacted"]

_NETWORKED = ("kafka", "rabbitmq-stream")
_PLATFORM = sys.platform
_SERVED = ("linux", "darwin")
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)


async def connect(
    url: str,
    *,
    limits: Limits | None = None,
    clock: Clock | None = None,
    durability: str | None = None,
) -> Broker:
    """Open the broker that a URL names: `embedded:DIR` or `embedded::memory:`.

    Args:
        url: `embedded:DIR` keeps its file in the directory `DIR` (relative to the working
            directory), which is made if it does not exist. `embedded::memory:` keeps it in a
            private temporary directory until the broker is closed.
        limits: bounds; `Limits()` by default.
        clock: gives the wall time that is stored.
        durability: what an acknowledged publish must have survived: `fsync` or `os`; by default
            the strongest that this broker offers.

    Raises:
        ConfigError: the URL, the durability or the operating system is none that this version
            serves.
        StorageError: the directory or the file cannot be used.
    """
    path = directory_of(url)

    # Here, so that a networked broker's libraries are needed by those who use it only.
    from eventlane.brokers.embedded import open_broker  # noqa: PLC0415 - lazy, as above

    return await open_broker(
        path, limits=limits or Limits(), clock=clock or SystemClock(), durability=durability
    )


def directory_of(url: str) -> str | None:
    """The directory of an embedded broker; None for a private one.

    Raises:
        ConfigError: the URL or the operating system is none that this version serves.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in ("embedded", *_NETWORKED):
        raise ConfigError(
            f"broker URL: expected embedded:DIR or embedded::memory:, got {redacted(url)!r}."
            f"{near(scheme, ('embedded',))}"
        )
    if scheme in _NETWORKED:
        raise ConfigError(
            f"broker URL: expected embedded:DIR or embedded::memory:, got {redacted(url)!r}. "
            f"{scheme} is not in this version."
        )
    path, _, query = rest.partition("?")
    _refuse_options(query)
    if path.startswith("//"):
        raise ConfigError(
            f"broker URL: expected embedded:DIR, got {url!r}. The directory follows the colon "
            f"without slashes of its own: embedded:{path.lstrip('/') or './data'}, or "
            f"embedded:/{path.lstrip('/')} for a path from the root."
        )
    if not path:
        raise ConfigError(
            f"broker URL: expected a directory after the colon, got {url!r}; "
            "for example embedded:./data"
        )
    if _PLATFORM not in _SERVED:
        raise ConfigError(
            f"{url}: expected Linux or macOS, got {_PLATFORM}. Elsewhere the locks and the "
            "durability of the embedded broker would not hold; on Windows use WSL 2."
        )
    return None if path == ":memory:" else path


def redacted(url: str) -> str:
    """The URL as it may be shown: without passwords."""
    head, at, tail = url.rpartition("@")
    if at:
        scheme, slashes, authority = head.partition("://")
        # Each host of a list may carry its own user.
        user = authority.partition(":")[0] if slashes else head.partition(":")[0]
        url = f"{scheme}{slashes}{user}:***@{tail}" if slashes else f"{user}:***@{tail}"
    return _SECRET_OPTION.sub(r"\1***", url)


def _refuse_options(query: str) -> None:
    for option in (each.partition("=")[0] for each in query.split("&") if each):
        raise ConfigError(
            f"broker URL: expected no options after the directory, got {option!r}. "
            "What can be set is an argument: durability, or a field of Limits."
        )
