"""A gateway for a playground: a namespace of its own behind a veth, that only talks to the addresses it knows."""

from __future__ import annotations

from tests.kernel.playground import Playground

GATEWAY, OURS = "192.0.2.1", "192.0.2.2"


class Neighbour:
    """It answers at GATEWAY behind the playground's new link `near`, but only to known hardware addresses.

    That is what port security on a switch does: a macvlan in source mode (ip-link(8)) hears nobody else, and the link
    below it answers no ARP.
    """

    def __init__(self, playground: Playground, near: str) -> None:
        self._playground = playground
        self._holder = playground.start("unshare", "--net", "sh", "-c", "echo made; exec sleep 600")
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "made\n"
        playground.run(f"ip link add {near} type veth peer name far netns {self._holder.pid}")
        self.run(
            "ip link set far arp off up",
            "ip link add secure link far type macvlan mode source",
            f"ip addr add {GATEWAY}/24 dev secure",
            "ip link set secure up",
            "ip link set lo up",
        )

    def run(self, *commands: str) -> None:
        for command in commands:
            self._playground.run(f"nsenter -t {self._holder.pid} -n {command}")

    def admit(self, address: str) -> None:
        """Hear this hardware address from now on."""
        self.run(f"ip link set secure type macvlan macaddr add {address}")

    def leave(self) -> None:
        """Answer nobody any more."""
        self.run("ip link set far down")
