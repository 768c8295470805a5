"""Memory that a step frees stays with the process, for the next step."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep the large blocks that are freed; whether it does so from now on, in the whole process.

    glibc gives them back to the system, which clears every page of the next one anew: a step on a CPU asks for the
    same blocks again and again. Nothing is done with other C libraries, and where the environment says how glibc is to
    deal with memory. No number changes; benchmarks/allocator.py measures what it is worth.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if told or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
