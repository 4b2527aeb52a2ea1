"""Serves the dashboard on loopback inside a running event loop, whose signals stay as they are."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette

from .hub import Hub

__all__ = ["serve"]

LOOPBACK = "127.0.0.1"
SHUTDOWN_S = 1


class QuietServer(uvicorn.Server):
    """The event loop belongs to the demo: SIGTERM and Ctrl-C are its business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serve(app: Starlette, port: int = 0) -> AsyncIterator[str]:
    """Serve `app` (from `create_dashboard`) for the length of the `async with` body.

    Args:
        app: The dashboard.
        port: 0 takes a free one.

    Yields:
        The address, such as `http://127.0.0.1:40123/`.

    Raises:
        OSError: The port is taken; nothing was started.

    Cancellation: Leaving the body for any reason ends the open streams and stops within about a
        second.
    """
    listener = socket.create_server((LOOPBACK, port))
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    server = QuietServer(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://{LOOPBACK}:{listener.getsockname()[1]}/"
    finally:
        hub: Hub = app.state.hub
        hub.close()
        server.should_exit = True
        await running
        listener.close()
