"""Python's memory, kept out of the way: the cyclic collector off the hot path, and freed pages given back.

A pass over a thousand links makes some hundred thousand objects and next to no cycles. With its usual thresholds the
collector walks all of them again and again meanwhile, which takes longer than the pass itself.
"""

from __future__ import annotations

import gc

YOUNG, MIDDLE, OLD = 100_000, 20, 50


def settle() -> None:
    """What is there now (modules, mostly) is not looked at again until `trim`; collect rarely from here on."""
    if not gc.get_freeze_count():  # a second time, garbage of ours could be among it
        gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)


def trim() -> None:
    """Collect what the start and a peak left behind, and give its pages back to the kernel.

    malloc_trim(3); another libc may not have it. It comes late: a collection takes as long as a pass over many links.
    """
    import ctypes  # long imported where this is called, and help needs none of it

    gc.unfreeze()
    gc.collect()
    gc.freeze()
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
