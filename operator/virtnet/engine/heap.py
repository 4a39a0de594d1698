"""Python's memory, kept out of the way: the cyclic collector off the hot path, and freed pages given back.

A pass over a thousand links makes some hundred thousand objects and next to no cycles. With its usual thresholds the
collector walks all of them again and again meanwhile, which takes longer than the pass itself.
"""

from __future__ import annotations

import gc

YOUNG, MIDDLE, OLD = 100_000, 20, 50


def settle() -> None:
    """What is there now (modules, mostly) is never looked at again; collect rarely from here on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)


def trim() -> None:
    """Give the pages that a peak left behind back to the kernel (malloc_trim(3); another libc may not have it)."""
    import ctypes  # long imported where this is called, and help needs none of it

    gc.collect()
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
