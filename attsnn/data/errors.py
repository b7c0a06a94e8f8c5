"""What the readers say about data that is absent, broken or hostile, or that is left out."""

import os
import sys
import warnings

from attsnn._files import plain


class DataError(ValueError):
    """Data cannot be used; its text is one sentence. A command line prints it and exits with `code`."""

    code = 3


class DataMissingError(DataError):
    """The data is not there; the text says where to get it and how to prepare it."""


class DataFormatError(DataError):
    """A file is not what its format promises.

    `path` is the file, `offset` the byte at which the reader stopped, `line` the line of a text file (from
    1); what does not apply is None. The text is "path:line: sentence" or "path: byte offset: sentence".
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        line: int | None = None,
    ):
        if path is not None:
            at = f"{line}:" if line is not None else f" byte {offset}:" if offset is not None else ""
            message = f"{plain(path)}:{at} {message}"
        super().__init__(message)  # one argument, so that a data loader's worker can hand the error on
        self.path, self.offset, self.line = path, offset, line


def warn(sentence: str) -> None:
    """A UserWarning at the line outside of this package that called it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("attsnn."):
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=level)
