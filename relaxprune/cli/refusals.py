"""What the operating system refuses: a full disk, a folder that is gone or read-only, too many files, no memory.

Libraries below say so in errors of their own kinds, but in the system's words.
"""

from __future__ import annotations

import errno
import os
import re

# Where another library's error has these words of the system, the system has refused.
_CODES = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "EFBIG")
_WORDS = tuple(os.strerror(getattr(errno, name)) for name in _CODES if hasattr(errno, name))
_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|can't start new thread", re.I)
_MOST_LETTERS = 200


def refusal(error: BaseException) -> str | None:
    """Say what the system has refused, None where it has refused nothing and the error is another one."""
    if isinstance(error, OSError) and error.errno is not None:
        said = (error.strerror or os.strerror(error.errno)).rstrip(".")
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return ": ".join([said, *([" and ".join(map(repr, names))] if names else [])])
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"memory is not enough{f': {text[:_MOST_LETTERS]}' if text else ''}"
    if isinstance(error, Exception) and (_MEMORY.search(text) or any(word in text for word in _WORDS)):
        return text[:_MOST_LETTERS].rstrip(".")
    return None
