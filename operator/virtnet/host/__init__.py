"""The machine itself: one look at it, and one action for each change. It decides nothing.

machine       LinuxHost, behind reconcile.Host       looks             links and features, remembered
namespaces    entering a network namespace           netlink, dumps    the wire, and dumps that cost a comparison
links         rtnetlink: links, mtu, master          bridges           making bridges, their options
ethtool       its netlink family                     offloads, tuning  features; rings, channels, rx-frames, drivers
taps          /dev/net/tun                           processes         who holds taps and vhost devices
addresses     what enslaving would cut off           modules           kernel modules and their files
events        what the kernel tells by itself        ledger, journal   what we changed; its file of lines
state         the state directory, who holds it      records, codec   what is remembered in it, and its JSON form
guests        libvirt's domains, and their NICs        libvirt           its connection, on a thread of its own
replugs       NICs on their way out of guests and in
evidence      what running QEMUs look like           qmp, monitors     asking them: by a socket, by libvirt
msix          a device's PCI configuration
probes        what must still work after a change   gateways, names  asking a router; host names to addresses
"""

from __future__ import annotations

from virtnet.host.machine import LinuxHost

__all__ = ["LinuxHost"]
