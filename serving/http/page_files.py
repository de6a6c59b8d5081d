"""The pages at ``/`` and ``/docs``: static files of the package, with no build step; they load from no other host."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_HTML, _CSS, _SCRIPT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript"))
_HEADERS = {
    # Nothing from elsewhere and nothing inline: whatever a model answers, it does not become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PAGE_FILES = {
    "/": ("index.html", _HTML),
    "/page/style.css": ("style.css", _CSS),
    "/page/api.js": ("api.js", _SCRIPT),
    "/page/chat.js": ("chat.js", _SCRIPT),
    "/page/live.js": ("live.js", _SCRIPT),
    "/page/settings.js": ("settings.js", _SCRIPT),
    "/docs": ("docs.html", _HTML),
    "/page/docs.css": ("docs.css", _CSS),
    "/page/docs.js": ("docs.js", _SCRIPT),
}


class PageFile:
    """One file, read once."""

    def __init__(self, name: str, media_type: str) -> None:
        self._content = (_FOLDER / name).read_bytes()
        self._media_type = media_type

    async def route(self, request: Request) -> Response:
        return Response(self._content, headers=_HEADERS, media_type=self._media_type)
