"""What whoever operates the server asks of it: is it alive, does it take questions, and its figures."""

import hmac
from typing import Protocol

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from components.serving.callers import headers_of, is_from_here
from components.serving.desk import DRAINING, FrontDesk, Operation
from components.serving.messages import NOTHING_HERE

ROUTES = ("/healthz", "/readyz", "/metrics")
NOBODY = "no engine answers"
NO_TOKEN = "Send the token of --metrics-token, as Authorization: Bearer TOKEN."


class Operated(Protocol):
    """What is asked of the page."""

    is_shared: bool
    desk: FrontDesk
    operation: Operation


class Operating:
    """Answers these addresses, to anybody who asks how it is and to few who ask for figures."""

    def __init__(self, page: Operated):
        self._page = page

    async def __call__(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(path, scope)(scope, receive, send)

    def count(self, status: int) -> None:
        """Counts a request that was refused."""
        if (metrics := self._page.operation.metrics) is not None:
            metrics.refused_request(status)

    def _answer(self, path: str, scope: Scope) -> ASGIApp:
        if path == "/healthz":
            return JSONResponse({"status": "alive"})
        if path == "/readyz":  # the server starts once a model is loaded
            desk = self._page.desk
            said = "ready" if desk.is_ready else DRAINING if desk.is_draining else NOBODY
            return JSONResponse({"status": said}, 200 if desk.is_ready else 503)
        operation = self._page.operation
        if operation.metrics is None or not (operation.metrics_token or self._is_own(scope)):
            return JSONResponse({"error": NOTHING_HERE}, 404)
        if operation.metrics_token and not self._has_token(scope):
            return JSONResponse({"error": NO_TOKEN}, 401, {"www-authenticate": "Bearer"})
        return operation.metrics.app

    def _has_token(self, scope: Scope) -> bool:
        scheme, _, token = headers_of(scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            token.encode("latin-1"), self._page.operation.metrics_token.encode()
        )

    def _is_own(self, scope: Scope) -> bool:
        may_be_anybody = self._page.is_shared or self._page.operation.behind_proxy
        return not may_be_anybody and is_from_here(scope)
