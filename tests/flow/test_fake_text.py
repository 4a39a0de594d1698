"""A fake host is its text, and a text is that host."""

from __future__ import annotations

import pytest

from tests.flow.fake import FakeHost

WHOLE = """\
bond0 bond mtu=1500 +tx +sg +tso +gso +gro -lro +txvlan
br0 bridge mtu=1400 stp=on delay=20 ageing=31.24 snooping=off vlan=on mask=8 +tx +sg +tso \
~tx-tcp-accecn-segmentation +gso +gro +txvlan
en0 e1000e mtu=1500 rx-ring=512/4096 tx-ring=256/4096 +rx -tx +sg ~tso +gso +gro +rxvlan +txvlan +rxhash
eth0 mlx5_core mtu=9000 master=br0 rx-ring=1024/8192 tx-ring=1024/8192 combined=4/8 +rx +tx +sg +tso +gso +gro -lro \
+rxvlan +txvlan -ntuple +rxhash ~rx-gro-hw refuses=rx-gro-hw
eth1 r8169 mtu=1500 master=bond0 no-carrier +rx +tx +sg +tso +gso +gro +rxvlan +txvlan
lo lo mtu=65536 +tso +gso +gro
tap0 tap mtu=1400 txqlen=500 master=br0 vnet_hdr mq owner=107 group=36 frames=32 ~tx +sg ~tso \
-tx-tcp-mangleid-segmentation +gso -gro +txvlan held=qemu:100:vm1
v0 veth mtu=1500 down rx-queues=1/2 tx-queues=1/2 +rx -tx +sg ~tso +tx-tcp-accecn-segmentation +gso -gro +rxvlan \
+txvlan carries='address 192.0.2.1/24'
v0.7 vlan mtu=1500 lower=v0 +tx +sg +tso +gso +gro +txvlan unreadable=features
vhost_net Loaded experimental_zcopytx=1 used=qemu:100:vm1
file /etc/modprobe.d/x.conf "options vhost_net experimental_zcopytx=1\\n\""""


def test_a_host_is_read_from_its_own_text() -> None:
    assert str(FakeHost(WHOLE)) == WHOLE


def test_what_is_not_said_starts_as_the_kind_or_driver_does() -> None:
    host = FakeHost("eth0 e1000e\nvhost_net Absent")
    assert str(host).startswith("eth0 e1000e mtu=1500 rx-ring=256/4096 tx-ring=256/4096 +rx +tx +sg +tso +gso")
    assert str(host).endswith("vhost_net Absent")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("eth0 e1000e -tx +tso", r"eth0: \+tso|tx-tcp-segmentation cannot be"),
        ("eth0 e1000e +lro", "lro is fixed"),
        ("eth0 e9000", "unknown kind or driver 'e9000'"),
        ("eth0 e1000e vnethdr", "unknown word 'vnethdr'"),
        ("eth0 e1000e colour=red", "colour"),
        ("eth0 e1000e combined=2", "has no channels"),
        ("eth0 e1000e\neth0 e1000e", "there is a link eth0 already"),
        ("a-name-of-16-byte e1000e", "no interface name"),
        ("vhost_net Absent used=qemu", "used but not loaded"),
        ('file /etc/passwd ""', "outside of"),
    ],
)
def test_a_text_that_no_kernel_could_show_is_refused(line: str, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        FakeHost(line)
