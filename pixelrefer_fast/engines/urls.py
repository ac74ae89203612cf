"""Images and videos behind URLs: read only where the caller allows their scheme."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable
from typing import IO

from pixelrefer_fast.checks.values import shown

MAX_BYTES = 1 << 30
SECONDS = 60.0  # for a server to answer
WEB = ("http", "https")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def is_url(text: str) -> bool:
    """Whether `text` begins with a scheme; a drive's letter is none."""
    return _SCHEME.match(text) is not None


class Urls:
    """URLs of the allowed schemes: http and https by Python itself, s3, gs, abfs, hdfs, file, ... by pyarrow.

    Args:
        schemes: such as ("https", "s3"). Whatever a row names is then fetched from the worker's own network.

    Raises:
        ValueError: a scheme is no word.
    """

    def __init__(self, schemes: Iterable[str] = ()) -> None:
        if isinstance(schemes, str):
            raise ValueError(f"url_schemes: expected a list such as ['https'], got {shown(schemes)}")
        self.schemes = tuple(schemes)
        for scheme in self.schemes:
            if not isinstance(scheme, str) or not is_url(f"{scheme}://"):
                raise ValueError(f"url_schemes: expected words such as 'https' or 's3', got {shown(scheme)}")

    def read(self, url: str) -> bytes:
        """What is there.

        Raises:
            ValueError: the scheme is not allowed, nothing can be read, or it is larger than MAX_BYTES.
        """
        found = _SCHEME.match(url)
        scheme = found.group(1).lower() if found else ""
        if scheme not in self.schemes:
            allowed = ", ".join(self.schemes) or "none"
            raise ValueError(f"expected a path or a URL of an allowed scheme ({allowed}), got {shown(url)}")
        try:
            with self._open_web(url) if scheme in WEB else _open_store(url) as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError, ImportError) as error:  # pyarrow's own errors are of these
            raise ValueError(
                f"{shown(url)}: cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from None
        if len(data) > MAX_BYTES:
            raise ValueError(f"{shown(url)}: expected at most {MAX_BYTES} bytes, got more")
        return data

    def _open_web(self, url: str) -> IO[bytes]:
        """A web page's body; a redirection to a scheme that is not allowed has no handler."""
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.UnknownHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            opener.add_handler(handler())
        if "http" in self.schemes:
            opener.add_handler(urllib.request.HTTPHandler())
        if "https" in self.schemes:
            opener.add_handler(urllib.request.HTTPSHandler())
        return opener.open(url, timeout=SECONDS)


def _open_store(url: str) -> IO[bytes]:
    from pyarrow import fs

    system, path = fs.FileSystem.from_uri(url)
    return system.open_input_stream(path)
