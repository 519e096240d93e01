"""Settings of a whole process that numerical libraries read."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 512 * 1024 * 1024


def quiet_openmp() -> None:
    """Let OpenMP threads sleep while they wait; call before torch is imported.

    Threads that spin slow a busy machine down many times over. A value that the user set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to half a gigabyte for the next request.

    By default it gives large ones back to the kernel at once, and a model pays a page fault for
    every 4 kB of every intermediate result of every call. Does nothing where the C library is not
    glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
