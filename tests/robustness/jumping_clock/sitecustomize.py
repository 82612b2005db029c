"""Python runs this first where the folder is on its path: the time of day is then off by what a file says just now."""

import os
import time
from pathlib import Path

_file = Path(os.environ["STATEPOOL_TEST_CLOCK"])
_true_ns = time.time_ns


def _jumped_ns() -> int:
    return _true_ns() + int(_file.read_text(encoding="utf-8")) * 10**9


time.time_ns = _jumped_ns
time.time = lambda: _jumped_ns() / 1e9  # noqa: TID251 — the very clock that is not to be trusted
