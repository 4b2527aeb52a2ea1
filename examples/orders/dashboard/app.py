"""The orders dashboard: Starlette, server-rendered, one stream of server-sent events per page.

    GET  /               the page
    GET  /figures        the same figures as tables
    GET  /dead/{kind}    the latest dead letters of one kind, with their reasons
    GET  /stream         fragments of the front page as they change (`?kind=` for a kind's page)
    POST /rebuild        count all totals again from the log
    POST /theme          remember light, dark or automatic

Only GET changes nothing, so only POST is checked for its origin (`guard.py`).
"""

from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from jinja2 import Environment
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from . import fragments, health, wording
from .guard import Guard
from .hub import Hub
from .snapshot import DashboardSource, SourceUnavailable

__all__ = ["create_dashboard"]

HERE = Path(__file__).parent
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "orders_theme"
YEAR_S = 365 * 24 * 3600


class Dashboard:
    """The pages of one source."""

    def __init__(
        self, source: DashboardSource, hub: Hub, templates: Environment, console_url: str | None
    ) -> None:
        self._source = source
        self._hub = hub
        self._templates = templates
        self._console_url = console_url

    def _page(
        self, request: Request, name: str, status: HTTPStatus = HTTPStatus.OK, **values: object
    ) -> Response:
        theme = request.cookies.get(THEME_COOKIE, "auto")
        html = self._templates.get_template(name).render(
            values,
            theme=theme if theme in THEMES else "auto",
            console_url=self._console_url,
            path=request.url.path,
        )
        return HTMLResponse(html, status)

    async def front(self, request: Request) -> Response:
        reading = await self._hub.reading()
        live = fragments.fragments_of(self._templates, reading)
        return self._page(request, "page.html", live=live, now=reading.snapshot, stream="/stream")

    async def figures(self, request: Request) -> Response:
        reading = await self._hub.reading()
        totals = reading.snapshot.totals
        rows = [
            (wording.title(each.start, totals.size), each.orders, each.revenue_cents)
            for each in totals.buckets
        ]
        ranked = sorted(totals.departments, key=lambda each: (-each.revenue_cents, each.name))
        return self._page(
            request,
            "figures.html",
            now=reading.snapshot,
            rows=rows[::-1],
            departments=ranked,
            stream="",
            trouble=reading.trouble,
        )

    async def dead(self, request: Request) -> Response:
        kind: str = request.path_params["kind"]
        reading = await self._hub.reading()
        trouble = ""
        try:
            letters = await self._source.letters(kind, limit=fragments.LETTERS_MAX)
        except SourceUnavailable as problem:
            letters, trouble = (), str(problem)
        known = kind in health.KINDS or any(each.name == kind for each in reading.snapshot.kinds)
        return self._page(
            request,
            "dead.html",
            HTTPStatus.OK if known else HTTPStatus.NOT_FOUND,
            kind=kind,
            letters=letters,
            trouble=trouble,
            now=reading.snapshot,
            live=fragments.kind_fragments_of(self._templates, reading, kind),
            stream=f"/stream?kind={quote(kind)}",
        )

    async def stream(self, request: Request) -> Response:
        kind = request.query_params.get("kind")

        def render(reading: fragments.Reading) -> dict[str, str]:
            if kind is None:
                return fragments.fragments_of(self._templates, reading)
            return fragments.kind_fragments_of(self._templates, reading, kind)

        return StreamingResponse(self._hub.stream(render), media_type="text/event-stream")

    async def rebuild(self, request: Request) -> Response:
        try:
            await self._source.rebuild()
        except SourceUnavailable as problem:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            now = (await self._hub.reading()).snapshot
            return self._page(
                request, "refused.html", status, reason=str(problem), now=now, stream=""
            )
        self._hub.expire()
        return RedirectResponse("/#rebuild-heading", HTTPStatus.SEE_OTHER)

    async def theme(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("ascii", "replace")))
        chosen, back = form.get("theme", ""), form.get("back", "/")
        target = urlsplit(back)
        inside = (
            not target.scheme
            and not target.netloc
            and target.path.startswith("/")
            and "\\" not in back
        )
        response = RedirectResponse(target.path if inside else "/", HTTPStatus.SEE_OTHER)
        if chosen in THEMES:
            response.set_cookie(THEME_COOKIE, chosen, max_age=YEAR_S, httponly=True, samesite="lax")
        return response


def create_dashboard(source: DashboardSource, *, console_url: str | None = None) -> Starlette:
    """The dashboard as an ASGI application.

    Args:
        source: Where the figures come from.
        console_url: Where the operations console runs, such as `http://127.0.0.1:8700`; dead
            letters link to it.
    """
    hub = Hub(source)
    pages = Dashboard(source, hub, fragments.environment(HERE / "templates"), console_url)
    app = Starlette(
        routes=[
            Route("/", pages.front),
            Route("/figures", pages.figures),
            Route("/dead/{kind}", pages.dead),
            Route("/stream", pages.stream),
            Route("/rebuild", pages.rebuild, methods=["POST"]),
            Route("/theme", pages.theme, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Guard)],
    )
    app.state.hub = hub
    return app
