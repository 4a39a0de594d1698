"""A guest with Debian's kernel and busybox: it lets go of its NIC when asked, and its console says what it has."""

from __future__ import annotations

import re
from pathlib import Path

from tests.guests.test_definitions import DOMAIN
from tests.lab import guest
from tests.lab.__main__ import newest_kernel, release

BOOT_SECONDS = 120.0
"""Without KVM, on a machine that does other work."""

INIT = f"""{guest.SET_UP}
before=nothing
while true; do
    now=$(cat /sys/class/net/eth0/address /sys/class/net/eth0/ifindex 2>/dev/null | tr '\\n' ' ')
    test "$now" = "$before" || echo "guest: has ${{now:-none}}" > /dev/console
    before=$now
    usleep 50000
done
"""


def domain(place: Path) -> str:
    """The domain of the other tests, with a system; its console is `place`/console."""
    kernel, initrd = newest_kernel(), place / "initrd"
    initrd.write_bytes(guest.archive(INIT, release(kernel)))
    boot = f"<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>console=ttyS0 quiet panic=-1</cmdline>"
    serial = f"<serial type='file'><source path='{place}/console'/></serial>"
    with_system = DOMAIN.replace("</type></os>", f"</type>{boot}</os>").replace("<devices>", f"<devices>{serial}")
    return with_system.replace("<memory>65536", "<features><acpi/></features><memory>262144")


def nics(place: Path) -> list[tuple[str, str]]:
    """The NICs that the guest had, one after the other: MAC address, and ifindex, which is anew after it was away."""
    console = place / "console"
    return re.findall(r"guest: has (\S+) (\d+)", console.read_text(errors="replace") if console.exists() else "")
