"""Health over HTTP: what `/live` and `/ready` answer, and the server of all pages, on a thread.

A thread, because the event loop may be what is not well.
"""

import errno
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Literal, NamedTuple, Self

import msgspec

from eventlane.errors import ConfigError
from eventlane.metrics import Series

__all__ = ["Address", "Answer", "HealthServer", "Page", "Reason", "Report", "live", "ready"]

log = logging.getLogger("eventlane.health")

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^:\[\]/\s]*)):(?P<port>\d{1,5})")
_PORT_MAX = 65_535
_TURN_S = 0.2
"""How soon the server's thread notices that it is to end."""

_encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """What a page says."""

    status: int
    body: bytes
    content_type: str = "application/json"


Page = Callable[[], Answer]
"""Called on a thread of the server for each request."""


class Reason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why it is not ready."""

    reason: Literal["starting", "draining", "stalled", "storage", "no-progress"]
    detail: str
    worker: int | None = None
    """Which of a supervisor's workers says so."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says of itself; a worker sends one to its supervisor every second."""

    state: Literal["starting", "ready", "draining"]
    stalled_s: float
    """For how long its event loop has not turned."""
    stall_s_max: float
    """See `Limits`, as the next three."""
    lease_s: float
    drain_s: float
    stuck_s: float
    reasons: tuple[Reason, ...] = ()
    """What keeps it from being ready, its state apart."""
    series: tuple[Series, ...] = ()
    """What it has counted since it started."""
    durable: tuple[Series, ...] | None = None
    """What the broker has; only in answer to a supervisor that asked."""

    @property
    def is_turning(self) -> bool:
        """Whether its event loop turns."""
        return self.stalled_s <= self.stall_s_max

    @property
    def all_reasons(self) -> tuple[Reason, ...]:
        """What keeps it from being ready."""
        found = list(self.reasons)
        if self.state == "starting":
            found.insert(0, Reason(reason="starting", detail="its groups are not joined yet"))
        elif self.state == "draining":
            found.insert(0, Reason(reason="draining", detail="it was asked to end"))
        if not self.is_turning:
            detail = (
                f"the event loop has not turned for {self.stalled_s:.0f} s (Limits.stall_s_max="
                f"{self.stall_s_max:g}): a handler blocks it"
            )
            found.append(Reason(reason="stalled", detail=detail))
        return tuple(found)


def live(*, is_live: bool) -> Answer:
    """What `/live` answers."""
    return Answer(200 if is_live else 503, _encode({"live": is_live}))


def ready(reasons: Sequence[Reason]) -> Answer:
    """What `/ready` answers: 503 if there is a reason."""
    return Answer(503 if reasons else 200, _encode({"ready": not reasons, "reasons": reasons}))


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Read `HOST:PORT`; no host is this machine alone, 127.0.0.1.

        Raises:
            ConfigError: It is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found["port"]) > _PORT_MAX:
            raise ConfigError(
                f"--health {text}: expected HOST:PORT, as in 127.0.0.1:8080, :8080 (the same: this "
                "machine alone), 0.0.0.0:8080 (all of its addresses, as in a container) or "
                "[::1]:8080."
            )
        return cls(found["v6"] or found["host"] or "127.0.0.1", int(found["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HealthServer:
    """Serves pages while it is open.

    Raises:
        ConfigError: The address cannot be had; nothing was started.
    """

    def __init__(self, address: Address, pages: Mapping[str, Page]) -> None:
        try:
            self._server = _Server(address, pages)
        except OSError as error:
            raise ConfigError(f"--health {address}: {_why(error, address.port)}") from error
        self.address = Address(*self._server.socket.getsockname()[:2])
        """Where it listens: the port is another one where 0 was asked for."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_TURN_S,), name="eventlane-health", daemon=True
        )

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        log.info("health: http://%s/ready", self.address)
        return self

    def __exit__(self, *_: object) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"expected a free port, got one that is in use. `ss -ltnp 'sport = :{port}'` says by "
            f"whom (macOS: `lsof -nP -iTCP:{port} -sTCP:LISTEN`); or give another port."
        )
    if error.errno == errno.EACCES:
        return "expected a port that this user may open, got one that needs root: take 1024 or up."
    return (
        f"expected an address of this machine, got: {error.strerror or error}. 127.0.0.1 is this "
        "machine alone, 0.0.0.0 all of its addresses."
    )


class _Server(ThreadingTCPServer):
    # HTTPServer would look up the name of its address when it is bound, which may take long.
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: Address, pages: Mapping[str, Page]) -> None:
        family, _, _, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        super().__init__((str(place[0]), address.port), partial(_Handler, pages))

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # its caller's
        """Log what went wrong with one request; a client that has gone is no failure."""
        log.debug("a request from %s failed", client_address, exc_info=True)  # noqa: LOG014  # it is one


class _Handler(BaseHTTPRequestHandler):
    timeout = 5.0  # a client that says nothing keeps no thread
    server_version, sys_version = "eventlane", ""

    def __init__(self, pages: Mapping[str, Page], *request: Any) -> None:
        self._pages = pages
        super().__init__(*request)

    def do_GET(self) -> None:  # its caller's name for it
        self._say(has_body=True)

    def do_HEAD(self) -> None:  # the same
        self._say(has_body=False)

    def _say(self, *, has_body: bool) -> None:
        page = self._pages.get(self.path.partition("?")[0])
        answer = page() if page else Answer(404, _encode({"pages": sorted(self._pages)}))
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if has_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """A probe comes every few seconds: it is no news."""
