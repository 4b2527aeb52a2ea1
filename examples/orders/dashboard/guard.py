"""What every answer carries and every request must satisfy.

The dashboard has no login: it trusts this machine, and no change that another site asks for.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses foreign host names (DNS rebinding) and foreign changes; adds the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        refusal = refusal_of(scope["method"], Headers(scope=scope))
        handled = PlainTextResponse(refusal, 403) if refusal else self._app
        await handled(scope, receive, send_guarded)


def refusal_of(method: str, headers: Headers) -> str:
    """Why this request is refused; empty when it is not."""
    host = headers.get("host", "")
    if urlsplit(f"//{host}").hostname not in LOOPBACK_NAMES:
        return "Refused: the dashboard answers to loopback names only, such as 127.0.0.1.\n"
    if method in ("GET", "HEAD"):
        return ""
    fetch_site = headers.get("sec-fetch-site")
    if fetch_site == "same-origin" or (
        fetch_site is None and headers.get("origin") == f"http://{host}"
    ):
        return ""
    return "Refused: changes are taken from the dashboard's own pages only.\n"
