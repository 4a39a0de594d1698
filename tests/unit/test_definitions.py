"""Domains read as values, and single settings of one NIC written into a definition and taken out of it again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guests.domains import domains
from virtnet import errors
from virtnet.core import definitions, domain_xml
from virtnet.core.model import GuestNic, Value

MAC = "52:54:00:aa:00:01"
NIC = f"""<interface type='bridge'>
      <mac address='{MAC.upper()}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
      <driver name='vhost' queues='2'><host tso4='off'/></driver>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0' multifunction='on'/>
    </interface>"""
PLACE = "bus=1 domain=0 function=0 slot=0 type=pci"


def domain(*interfaces: str, kind: str = "kvm") -> bytes:
    text = f"<domain type='{kind}'><name>db</name><vcpu>4</vcpu><devices>{''.join(interfaces)}</devices></domain>"
    return text.encode()


def only(*interfaces: str, live: bytes | None = None, **networks: str) -> GuestNic:
    (found,) = definitions.read("u", domain(*interfaces), live, networks).nics
    return found


def test_a_nic_is_read_with_all_that_a_policy_can_ask_for() -> None:
    written = {"guest.nic.model": "virtio", "vhost.mode": "Required", "guest.nic.queues": 2}
    assert only(NIC) == GuestNic(MAC, PLACE, "br0", configured={**written, "guest.nic.host.tso4": False})


def test_a_domain_says_its_name_its_cpus_and_whether_it_is_emulated() -> None:
    found = definitions.read("u", domain(kind="qemu"), None)
    assert (found.uuid, found.name, found.vcpus, found.emulated) == ("u", "db", 4, True)


def test_a_running_nic_is_compared_with_its_definition_by_address_and_place() -> None:
    live = domain(NIC.replace("queues='2'", "queues='4'").replace("</interface>", "<target dev='vnet0'/></interface>"))
    found = only(NIC, live=live)
    assert found.running is not None
    assert (found.running["guest.nic.queues"], found.tap) == (4, "vnet0")
    assert only(NIC, live=domain()).running is None


def test_a_domain_without_a_definition_has_only_what_runs() -> None:
    (found,) = definitions.read("u", None, domain(NIC)).nics
    assert found.configured is None
    assert found.running is not None


def test_the_bridge_of_a_network_is_what_libvirt_says_or_what_runs() -> None:
    plugged = NIC.replace("type='bridge'", "type='network'").replace("bridge='br0'", "network='lan'")
    assert only(plugged, lan="virbr7").bridge == "virbr7"
    assert only(plugged).bridge is None
    assert only(plugged, live=domain(plugged.replace("network='lan'", "network='lan' bridge='br9'"))).bridge == "br9"
    assert definitions.networks(domain(plugged, NIC)) == {"lan"}


def test_why_a_nic_is_not_ours_is_said() -> None:
    assert "has no tap" in only(NIC.replace("type='bridge'", "type='user'", 1)).unsuited
    found = only(NIC.replace("'virtio'", "'e1000'"))
    assert (found.unsuited, "e1000" in found.model_unsuited) == ("", True)


# --- writing -----------------------------------------------------------------------------------------------


def test_settings_are_written_in_place_and_taken_out_with_nothing_left_behind() -> None:
    found = definitions.find(domain(NIC), MAC, PLACE)
    text = found.interface((("guest.nic.queues", None), ("guest.nic.packed", True), ("guest.nic.host.tso4", None)))
    assert text.decode() == NIC.replace(" queues='2'", "").replace("'vhost'>", "'vhost' packed='on'>").replace(
        " tso4='off'", ""
    )


def test_the_whole_document_is_kept_around_a_nic() -> None:
    other = NIC.replace(":01", ":02")
    found = definitions.find(domain(other, NIC), MAC, PLACE)
    assert found.written((("guest.nic.queues", 3),)) == domain(other, NIC.replace("queues='2'", "queues='3'"))
    assert found.alone


def test_a_send_buffer_and_a_model_are_taken_out_whole() -> None:
    tuned = NIC.replace("</interface>", "<tune><sndbuf>1600</sndbuf></tune></interface>")
    found = definitions.find(domain(tuned), MAC, PLACE)
    text = found.interface((("guest.nic.sndbuf", None), ("guest.nic.model", None))).decode()
    assert "<tune></tune>" in text
    assert "<model" not in text


def test_nics_of_one_address_are_told_by_their_place_and_known_not_to_be_alone() -> None:
    other = NIC.replace("bus='0x01'", "bus='0x02'")
    assert not definitions.find(domain(NIC, other), MAC, PLACE).alone


@pytest.mark.parametrize(("mac", "place"), [("52:54:00:aa:00:02", PLACE), (MAC, "")])
def test_a_nic_that_is_not_there_any_more_is_gone(mac: str, place: str) -> None:
    with pytest.raises(errors.Gone):
        definitions.find(domain(NIC), mac, place)


def test_two_that_cannot_be_told_apart_are_not_touched() -> None:
    with pytest.raises(errors.Gone):
        definitions.find(domain(NIC, NIC), MAC, PLACE)


VALUES: dict[str, st.SearchStrategy[Value]] = {
    **dict.fromkeys(domain_xml.SETTINGS, st.booleans()),
    "vhost.mode": st.sampled_from(["Required", "Disabled"]),
    "guest.nic.model": st.sampled_from(["virtio", "virtio-transitional"]),
    "guest.nic.txMode": st.sampled_from(["iothread", "timer"]),
    **dict.fromkeys(
        ("guest.nic.queues", "guest.nic.rxQueueSize", "guest.nic.txQueueSize", "guest.nic.sndbuf"), st.integers(1, 999)
    ),
}


@given(domains(), st.fixed_dictionaries({}, optional=VALUES), st.integers(0, 2**32 - 1))
def test_what_is_written_and_taken_back_is_what_was_there(
    drawn: tuple[bytes, object], wanted: dict[str, Value], seed: int
) -> None:
    document, _ = drawn
    _, interfaces = domain_xml.parse(document)
    names = [definitions.where(each) for each in interfaces]
    alone = [name for name in names if names.count(name) == 1]
    if not alone:
        return
    chosen = random.Random(seed).choice(alone)
    before = definitions.find(document, *chosen)
    changed = definitions.find(before.written(wanted.items()), *chosen)
    assert changed.settings == {**before.settings, **wanted}
    originals = [(path, before.settings.get(path)) for path in wanted]
    again = definitions.find(changed.written(originals), *chosen)
    assert again.settings == before.settings
    others = [each for each in domain_xml.parse(again.document)[1] if definitions.where(each) != chosen]
    assert [definitions.settings(each) for each in others] == [
        definitions.settings(each) for each in interfaces if definitions.where(each) != chosen
    ]
