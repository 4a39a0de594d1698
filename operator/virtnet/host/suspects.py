"""Who else may be setting a link's offloads, rings or MTU: read from the configuration of programs known to do so.

NetworkManager profiles (nm-settings-keyfile(5), section ethtool), the active TuneD profile (section net, features=) and
systemd .link files (systemd.link(5)). A suspicion, never a proof: the kernel does not say who changed a feature.
"""

from __future__ import annotations

import configparser
import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import Path

from virtnet.core.model import Link

PROFILES = ("etc/NetworkManager/system-connections", "run/NetworkManager/system-connections")
TUNED_ACTIVE = "etc/tuned/active_profile"
TUNED = ("etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned")
LINK_FILES = ("etc/systemd/network", "run/systemd/network", "usr/lib/systemd/network")
_LINK_KEYS = ("offload", "buffersize", "channels", "mtubytes", "receivevlan", "transmitvlan", "ntuple", "coalesce")
_TUNED_DEPTH = 8


def suspects(link: Link, root: Path = Path("/")) -> tuple[str, ...]:
    """One phrase for each program whose configuration speaks of this link; empty when none does."""
    found = (*_profiles(link, root), *_tuned(root), *_link_files(link, root))
    return tuple(dict.fromkeys(found))


def _profiles(link: Link, root: Path) -> Iterator[str]:
    for path in _files(root, PROFILES, "*.nmconnection"):
        profile = _read(path)
        name = profile.get("connection", "interface-name", fallback=link.name)
        if name == link.name and profile.has_section("ethtool") and profile.options("ethtool"):
            yield f"NetworkManager profile {profile.get('connection', 'id', fallback=path.stem)}"


def _tuned(root: Path) -> Iterator[str]:
    active = _text(root / TUNED_ACTIVE).split()
    seen: set[str] = set()
    names = list(active)
    for _ in range(_TUNED_DEPTH):
        for name in [name for name in names if name not in seen]:
            seen.add(name)
            profile = _tuned_profile(name, root)
            if profile.has_option("net", "features"):
                yield f"TuneD profile {name}"
            names += profile.get("main", "include", fallback="").replace(",", " ").split()


def _tuned_profile(name: str, root: Path) -> configparser.ConfigParser:
    paths = (root / directory / name / "tuned.conf" for directory in TUNED)
    return _read(next((path for path in paths if path.exists()), Path("/nonexistent")))


def _link_files(link: Link, root: Path) -> Iterator[str]:
    for path in _files(root, LINK_FILES, "*.link"):
        file = _read(path)
        speaks = file.has_section("Link") and any(
            word in option.lower() for option in file.options("Link") for word in _LINK_KEYS
        )
        if speaks and file.has_section("Match") and _matches(link, file["Match"]):
            yield f"systemd link file {path.name}"


def _matches(link: Link, match: configparser.SectionProxy) -> bool:
    names = match.get("originalname", "").split()
    macs = [mac.lower() for mac in match.get("macaddress", "").split()]
    if not names and not macs:
        return False
    by_name = not names or any(fnmatch.fnmatchcase(link.name, name) for name in names)
    return by_name and (not macs or link.mac.lower() in macs)


def _files(root: Path, directories: Iterable[str], pattern: str) -> Iterator[Path]:
    for directory in directories:
        try:
            yield from sorted((root / directory).glob(pattern))
        except OSError:
            continue


def _read(path: Path) -> configparser.ConfigParser:
    """An INI file; one that cannot be read or parsed says nothing about anybody."""
    found = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    try:
        found.read_string(_text(path))
    except configparser.Error:
        found.clear()
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
