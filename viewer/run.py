"""``cocoseg view``: open the sources and serve the page until interrupted."""

import contextlib
import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

_ANY = ("0.0.0.0", "::")  # noqa: S104
"""All addresses of this machine."""


class ViewServer:
    """A page that is being served.

    Attributes
    ----------
    address
        To open in a browser.
    public
        Whether other machines may reach it.
    """

    def __init__(
        self, server: "uvicorn.Server", listener: socket.socket, address: str, public: bool
    ) -> None:
        self.address, self.public = address, public
        self._server, self._listener = server, listener
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until a signal, or `stop`."""
        self._server.run(sockets=[self._listener])
        self._listener.close()

    def start(self) -> None:
        """Serve in a thread of its own, for a notebook or a program."""
        self._thread = threading.Thread(target=self.run, name="cocoseg-view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server that `start` began."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _repr_html_(self) -> str:
        """Show the page in a notebook."""
        return f'<iframe src="{self.address}" width="100%" height="720" loading="lazy"></iframe>'


def open_view(paths: Sequence[str], host: str = "127.0.0.1", port: int = 0) -> ViewServer:
    """Open shards, evaluations and predictions, and bind a server for their page.

    Parameters
    ----------
    paths
        Local folders or URLs; see `open_sources`.
    host
        Beyond this machine, the address holds a token without which nothing is answered.
    port
        0 takes a free one.

    Raises
    ------
    ConfigError
        If a path is none that can be shown, the port is taken, or a package is missing.
    DataError
        If a file is broken.
    """
    try:
        import uvicorn

        from .app import LOOPBACK, make_app
    except ImportError as error:
        raise ConfigError(f"not installed: {error.name}: pip install 'cocoseg[view]'") from None
    from .sources import open_sources

    token = None if host in LOOPBACK else secrets.token_urlsafe(16)
    app = make_app(open_sources(paths), token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # so that the address answers as soon as it is known
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}") from None
    number = listener.getsockname()[1]
    named = socket.gethostname() if host in _ANY else host
    shown = f"[{named}]" if ":" in named else named
    address = f"http://{shown}:{number}/" + (f"?token={token}" if token else "")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    return ViewServer(uvicorn.Server(config), listener, address, token is not None)


def view(*paths: str, host: str = "127.0.0.1", port: int = 0) -> ViewServer:
    """Show shards, evaluations and predictions in a browser, from a notebook or a program.

    The server runs in a thread until its `stop`, or the end of the process. In a notebook the
    result shows the page; elsewhere open its `address`.

    Parameters
    ----------
    paths
        Local folders or URLs: shards, what ``cocoseg eval`` wrote, or ``cocoseg infer``.
    host
        Beyond this machine, the address holds a token without which nothing is answered.
    port
        0 takes a free one.

    Raises
    ------
    ConfigError, DataError
        See `open_view`.
    """
    server = open_view(paths, host, port)
    server.start()
    return server


def serve(paths: Sequence[str], host: str, port: int, *, open_browser: bool) -> None:
    """Serve the page until Ctrl-C; its address is logged."""
    server = open_view(paths, host, port)
    if server.public:
        log.warning("the page can be reached from other machines, by whoever has its address")
    log.info("%s  (Ctrl-C ends it)", server.address)
    if open_browser:
        webbrowser.open(server.address)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        server.run()
