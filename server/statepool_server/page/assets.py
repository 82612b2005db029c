"""The files of the status page; they load nothing from anywhere else."""

from importlib.resources import files

from statepool_server.web import Page, Route

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def asset_routes() -> dict[str, Route]:
    """Reads the files; gives a route for each."""
    return {path: _route(name, content_type) for path, (name, content_type) in _FILES.items()}


def _route(name: str, content_type: str) -> Route:
    page = Page((files(__package__) / name).read_bytes(), content_type)
    return lambda _accept: page
