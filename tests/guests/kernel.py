"""A guest with Debian's kernel and busybox: it lets go of its NIC when asked, and its console says what it has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.guests.test_definitions import DOMAIN
from tests.lab.__main__ import newest_kernel, release

BOOT_SECONDS = 120.0
"""Without KVM, on a machine that does other work."""

# The order matters: insmod does not look for what a module needs.
MODULES = (
    *("drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_pci_legacy_dev"),
    *("drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci"),
    *("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"),
)
INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {" ".join(Path(module).name for module in MODULES)}; do insmod /modules/$module.ko; done
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
    initrd.write_bytes(archive(place / "root", Path("/lib/modules", release(kernel), "kernel")))
    boot = f"<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>console=ttyS0 quiet panic=-1</cmdline>"
    serial = f"<serial type='file'><source path='{place}/console'/></serial>"
    with_system = DOMAIN.replace("</type></os>", f"</type>{boot}</os>").replace("<devices>", f"<devices>{serial}")
    return with_system.replace("<memory>65536", "<features><acpi/></features><memory>262144")


def archive(root: Path, modules: Path) -> bytes:
    """The root file system."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox is missing: install busybox-static"
    for name in ("bin", "modules", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    for module in MODULES:
        shutil.copy(modules / f"{module}.ko", root / "modules")
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    command = [busybox, "cpio", "-o", "-H", "newc"]
    return subprocess.run(command, cwd=root, input=names.encode(), capture_output=True, check=True).stdout


def nics(place: Path) -> list[tuple[str, str]]:
    """The NICs that the guest had, one after the other: MAC address, and ifindex, which is anew after it was away."""
    console = place / "console"
    return re.findall(r"guest: has (\S+) (\d+)", console.read_text(errors="replace") if console.exists() else "")
