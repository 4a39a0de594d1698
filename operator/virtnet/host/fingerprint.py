"""The feature bits of this kernel that a live migration depends on; reading them makes no tap and loads no module."""

from __future__ import annotations

import fcntl
import os
import struct

from virtnet.core.model import Fingerprint

TUN, VHOST_NET = "/dev/net/tun", "/dev/vhost-net"
TUNGETFEATURES = 0x800454CF  # include/uapi/linux/if_tun.h
VHOST_GET_FEATURES = 0x8008AF00  # include/uapi/linux/vhost.h
_LOADED = "/sys/module/vhost_net"


def read() -> Fingerprint:
    """What both devices say. /dev/vhost-net is asked only while its module is there: opening it would load it."""
    vhost = _ask(VHOST_NET, VHOST_GET_FEATURES, "=Q") if os.path.exists(_LOADED) else None
    return Fingerprint(_ask(TUN, TUNGETFEATURES, "=I"), vhost)


def _ask(path: str, request: int, form: str) -> int | None:
    """None where there is no such device, or none for this process."""
    try:
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(struct.unpack(form, fcntl.ioctl(device, request, bytes(struct.calcsize(form))))[0])
    except OSError:
        return None
    finally:
        os.close(device)
