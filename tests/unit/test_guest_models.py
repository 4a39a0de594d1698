"""What a policy says of guests' NICs reaches the core, and every field of it has its place in libvirt and in QEMU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from tests.unit.policy_cases import Spec, document
from virtnet.core import domain_xml, nics, qemu_args
from virtnet.core.model import GuestMatch, GuestSpec, GuestUpdate, Policy, VhostSpec
from virtnet.kube import api, guests


def core(spec: Spec) -> Policy:
    return api.VirtioNetworkPolicy.model_validate(document(spec)).to_core()


def fields(model: type[BaseModel], path: str) -> Iterator[str]:
    """The paths of all values that a model can hold, as users type them."""
    for field in model.model_fields.values():
        here = f"{path}.{field.alias}"
        below = [each for each in get_args(field.annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
        if below:
            yield from fields(below[0], here)
        else:
            yield here


NOT_OF_A_NIC = {"guest.nic.maxQueues"}
"""It bounds queues."""


def test_the_wish_of_a_policy_reaches_the_core_as_it_was_typed() -> None:
    policy = core(
        {
            "guest": {
                "match": {"domains": ["db-*"], "macs": ["52:54:00:AB:cd:EF"], "bridge": "br1"},
                "update": "Replug",
                "nic": {"queues": "vcpus", "maxQueues": 8, "host": {"tso4": False, "csum": True}, "packed": True},
            },
            "vhost": {"pollMicroseconds": 50},
        }
    )
    assert policy.guest == GuestSpec(
        GuestMatch(("db-*",), ("52:54:00:ab:cd:ef",), "br1"),
        GuestUpdate.REPLUG,
        (("queues", "vcpus"), ("maxQueues", 8), ("host.csum", True), ("host.tso4", False), ("packed", True)),
    )
    assert policy.vhost == VhostSpec(poll_microseconds=50)


def test_what_is_not_written_of_guests_is_not_asked() -> None:
    assert core({}).guest is None
    assert core({"guest": {}}).guest == GuestSpec(None, GuestUpdate.NEXT_START, ())


def test_virtual_machines_of_kubevirt_are_marked() -> None:
    policy = core({"guest": {"match": {"virtualMachines": {}}}})
    assert policy.guest is not None
    assert policy.guest.match == GuestMatch(virtual_machines=True)


def test_every_field_of_a_nic_has_its_place_in_libvirt_and_in_qemu() -> None:
    every = set(fields(guests.Nic, "guest.nic")) - NOT_OF_A_NIC
    assert every | {nics.MODE} == set(domain_xml.SETTINGS)
    of_the_tap_or_by_hand = {"guest.nic.model", "guest.nic.queues", "guest.nic.sndbuf"}
    assert every - of_the_tap_or_by_hand == set(qemu_args.PROPERTIES)


def test_what_contradicts_itself_in_one_policy_is_what_contradicts_itself_between_two() -> None:
    """The rules of the models and those of the core are written twice: for an API server, and for merging."""
    for path, needed in nics.NEEDS.items():
        nic: dict[str, Any] = {}
        for name, value in ((path, True), *((other, False) for other in needed)):
            side, _, offload = name.removeprefix(nics.NIC).partition(".")
            nic.setdefault(side, {})[offload] = value
        refused = False
        try:
            core({"guest": {"nic": nic}})
        except ValueError:
            refused = True
        assert refused, path


def test_the_documented_table_of_fields_is_the_one_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guests.md").read_text()
    documented = {
        path: (place, since, qemu)
        for path, place, since, qemu in re.findall(r"^\| `(\S+)` \| `(\S+?)`.* \| ([\d.]+) \| (.*) \|$", text, re.M)
    }
    assert set(documented) == set(domain_xml.SETTINGS)
    for path, place in domain_xml.SETTINGS.items():
        written = "/".join(place.path) + (f"/@{place.attribute}" if place.attribute else "")
        assert documented[path][:2] == (written, place.since)
    for path, about in qemu_args.PROPERTIES.items():
        shown = f"`{about.name}`" + (f" ({about.since})" if about.since else "")
        assert documented[path][2].partition(":")[0] == shown
