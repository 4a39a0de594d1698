"""Who may be fighting for a link, told from configuration files in a tree of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtnet.core.model import Link
from virtnet.host.suspects import suspects

ETH0 = Link(2, "eth0", mac="52:54:00:00:00:01")

CASES = {
    "a NetworkManager profile for this link": (
        {
            "etc/NetworkManager/system-connections/lan.nmconnection": "[connection]\nid=lan\ninterface-name=eth0\n"
            "[ethtool]\nfeature-gro=false\n"
        },
        ("NetworkManager profile lan",),
    ),
    "a NetworkManager profile for another link": (
        {
            "etc/NetworkManager/system-connections/lan.nmconnection": "[connection]\nid=lan\ninterface-name=eth1\n"
            "[ethtool]\nfeature-gro=false\n"
        },
        (),
    ),
    "a NetworkManager profile without ethtool": (
        {"etc/NetworkManager/system-connections/lan.nmconnection": "[connection]\nid=lan\ninterface-name=eth0\n"},
        (),
    ),
    "an included TuneD profile": (
        {
            "etc/tuned/active_profile": "mine\n",
            "etc/tuned/profiles/mine/tuned.conf": "[main]\ninclude=base\n",
            "usr/lib/tuned/base/tuned.conf": "[net]\nfeatures=gro off\n",
        },
        ("TuneD profile base",),
    ),
    "TuneD profiles that include each other": (
        {
            "etc/tuned/active_profile": "a",
            "etc/tuned/a/tuned.conf": "[main]\ninclude=b\n",
            "etc/tuned/b/tuned.conf": "[main]\ninclude=a\n",
        },
        (),
    ),
    "a link file by name": (
        {"etc/systemd/network/10-lan.link": "[Match]\nOriginalName=eth*\n[Link]\nGenericReceiveOffload=no\n"},
        ("systemd link file 10-lan.link",),
    ),
    "a link file by address": (
        {"run/systemd/network/10-lan.link": "[Match]\nMACAddress=52:54:00:00:00:01\n[Link]\nMTUBytes=9000\n"},
        ("systemd link file 10-lan.link",),
    ),
    "a link file about names only": (
        {"etc/systemd/network/99-default.link": "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep\n"},
        (),
    ),
    "files that are no INI": ({"etc/systemd/network/10-lan.link": "\0\0[[[\nOriginalName"}, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_suspects_are_named_from_their_configuration(case: str, tmp_path: Path) -> None:
    files, expected = CASES[case]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert suspects(ETH0, tmp_path) == expected
