"""A libvirt domain and policies in, the domain as they want it out: what is written where, and what stays."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from virtnet import errors
from virtnet.__main__ import main
from virtnet.core import domain_xml, markup
from virtnet.core.domain_xml import Known
from virtnet.core.model import BridgeSpec, GuestMatch, GuestSpec, Mode, Policy, Reason, Value, VhostMode, VhostSpec

VIRTIO = "<model type='virtio'/>"
BR0 = "<source bridge='br0'/>"


def policy(name: str = "p", mode: VhostMode | None = None, bridge: str | None = "br0", **more: object) -> Policy:
    """`nic` are the settings below guest.nic, `match` the guest.match."""
    nic: dict[str, Value] = more.pop("nic", {})  # type: ignore[assignment]
    match: GuestMatch | None = more.pop("match", None)  # type: ignore[assignment]
    return Policy(
        name,
        bridge=BridgeSpec(bridge) if bridge else None,
        vhost=VhostSpec(mode) if mode else None,
        guest=GuestSpec(match, nic=tuple(nic.items())) if nic or match else None,
        **more,  # type: ignore[arg-type]
    )


def domain(*interfaces: str, kind: str = "kvm", vcpu: str = "<vcpu>4</vcpu>") -> bytes:
    nics = "".join(interfaces)
    return f"<domain type='{kind}'><name>db</name>{vcpu}<devices>{nics}</devices></domain>".encode()


def nic(content: str, kind: str = "bridge") -> str:
    return f"<interface type='{kind}'>{content}</interface>"


def changed(content: str, *policies: Policy) -> str:
    """What becomes of the content of the one NIC of a domain."""
    document = domain(nic(content))
    result = domain_xml.change(document, policies).document
    head, tail = document.split(content.encode())
    assert result.startswith(head)
    assert result.endswith(tail)
    return result[len(head) : -len(tail)].decode()


def reasons(result: domain_xml.Result) -> list[tuple[str, Reason | None]]:
    return [(row.setting, row.reason) for row in result.blocked]


# --- where a setting is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "written"),
    [
        ("queues", 8, "<driver queues='8'/>"),
        ("rxQueueSize", 1024, "<driver rx_queue_size='1024'/>"),
        ("txQueueSize", 256, "<driver tx_queue_size='256'/>"),
        ("txMode", "timer", "<driver txmode='timer'/>"),
        ("ioeventfd", False, "<driver ioeventfd='off'/>"),
        ("eventIdx", True, "<driver event_idx='on'/>"),
        ("packed", True, "<driver packed='on'/>"),
        ("iommu", True, "<driver iommu='on'/>"),
        ("ats", True, "<driver ats='on'/>"),
        ("rss", True, "<driver rss='on'/>"),
        ("rssHashReport", True, "<driver rss_hash_report='on'/>"),
        ("mergeableRxBuffers", False, "<driver><host mrg_rxbuf='off'/></driver>"),
        ("host.gso", False, "<driver><host gso='off'/></driver>"),
        ("host.tso6", False, "<driver><host tso6='off'/></driver>"),
        ("guest.ecn", True, "<driver><guest ecn='on'/></driver>"),
        ("sndbuf", 0, "<tune><sndbuf>0</sndbuf></tune>"),
    ],
)
def test_a_setting_that_is_not_there_is_written_where_libvirt_has_it(path: str, value: Value, written: str) -> None:
    assert changed(BR0 + VIRTIO, policy(nic={path: value})) == BR0 + VIRTIO + written


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        (VhostMode.REQUIRED, "", "<driver name='vhost'/>"),
        (VhostMode.DISABLED, "", "<driver name='qemu'/>"),
        (VhostMode.DISABLED, "<driver name='vhost' queues='2'/>", "<driver name='qemu' queues='2'/>"),
        (VhostMode.REQUIRED, "<driver name=''/>", "<driver name='vhost'/>"),
        (VhostMode.AUTO, "", ""),
        (VhostMode.AUTO, "<driver name='qemu'/>", "<driver name='qemu'/>"),
        (None, "<driver queues='2'/>", "<driver queues='2'/>"),
    ],
)
def test_the_vhost_mode_is_the_name_of_the_driver(mode: VhostMode | None, before: str, after: str) -> None:
    assert changed(BR0 + VIRTIO + before, policy(mode=mode)) == BR0 + VIRTIO + after


def test_all_that_is_missing_is_made_in_the_order_of_libvirt() -> None:
    wish = policy(
        mode=VhostMode.REQUIRED,
        nic={"sndbuf": 1600, "guest.tso4": False, "host.tso4": False, "queues": 2, "model": "virtio"},
    )
    assert changed(BR0, wish) == (
        f"{BR0}<model type='virtio'/><driver name='vhost' queues='2'><host tso4='off'/><guest tso4='off'/></driver>"
        "<tune><sndbuf>1600</sndbuf></tune>"
    )


def test_another_model_is_replaced_only_when_a_model_is_asked() -> None:
    e1000 = BR0 + "<model type='e1000'/>"
    assert changed(e1000, policy(nic={"queues": 2})) == e1000
    wish = policy(nic={"queues": 2, "model": "virtio"})
    assert changed(e1000, wish) == BR0 + "<model type='virtio'/><driver queues='2'/>"
    assert changed(BR0 + "<model type='Virtio'/>", policy(nic={"model": "virtio"})) == BR0 + "<model type='Virtio'/>"


@pytest.mark.parametrize(
    ("vcpu", "most", "queues"),
    [
        ("<vcpu>4</vcpu>", None, "4"),
        ("<vcpu placement='static' current='2'>4</vcpu>", None, "2"),
        ("<vcpu>\n  16 </vcpu>", 8, "8"),
        ("<vcpu>400</vcpu>", None, "256"),
        ("", None, "1"),
    ],
)
def test_a_queue_for_each_virtual_cpu_is_counted_at_the_start_and_bounded(
    vcpu: str, most: int | None, queues: str
) -> None:
    wish: dict[str, Value] = {"queues": "vcpus", **({"maxQueues": most} if most else {})}
    result = domain_xml.change(domain(nic(BR0 + VIRTIO), vcpu=vcpu), [policy(nic=wish)])
    assert f"<driver queues='{queues}'/>".encode() in result.document


def test_virtual_cpus_that_are_no_number_leave_the_queues_alone() -> None:
    document = domain(nic(BR0 + VIRTIO), vcpu="<vcpu>many</vcpu>")
    result = domain_xml.change(document, [policy(nic={"queues": "vcpus"})])
    assert (result.document, reasons(result)) == (document, [("guest.nic.queues", Reason.UNREADABLE)])


# --- what stays --------------------------------------------------------------------------------------------

WRITTEN_BY_HAND = """\ufeff<?xml version="1.0" encoding="utf-8"?>
<!-- <interface type='bridge'><source bridge='br0'/></interface> -->
<domain type="kvm" xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
\t<name>db</name>
\t<metadata><x:interface xmlns:x="urn:x" Type='A&amp;b'/></metadata>
\t<devices>
\t\t<disk><driver name="qemu" queues="9"/></disk>
\t\t<interface  type = "bridge" >
\t\t\t<alias name="ua-Capital"/><unknown thing='1 > 0'/>
\t\t\t<source bridge="br&#48;"/>
\t\t\t<model type="virtio"></model>
\t\t\t<driver\tname="vhost"
\t\t\t\tqueues = '2' ><!-- why --><host csum="on"/></driver >
\t\t</interface>
\t</devices>
\t<qemu:commandline><qemu:arg value='-device'/></qemu:commandline>
</domain>
<!-- the end -->"""


def test_every_byte_that_is_not_asked_stays() -> None:
    before = WRITTEN_BY_HAND.replace("\n", "\r\n")
    wish = policy(nic={"queues": 4, "host.csum": False, "host.tso4": False, "guest.ufo": False, "sndbuf": 0})
    after = domain_xml.change(before.encode(), [wish]).document.decode()
    expected = (
        before.replace("queues = '2'", "queues = '4'")
        .replace('<host csum="on"/>', '<host csum="off" tso4="off"/><guest ufo="off"/>')
        .replace("</driver >", "</driver >\r\n\t\t\t<tune>\r\n\t\t\t\t<sndbuf>0</sndbuf>\r\n\t\t\t</tune>")
    )
    assert after == expected


def test_a_prefix_that_is_not_declared_is_kept_as_libvirt_keeps_it() -> None:
    document = domain(nic(BR0 + VIRTIO)).replace(b"</domain>", b"<qemu:arg/></domain>")
    result = domain_xml.change(document, [policy(nic={"queues": 2})])
    assert result.document == document.replace(b"</interface>", b"<driver queues='2'/></interface>")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<driver/>", "<driver queues='2'><host csum='off'/></driver>"),
        ("<driver />", "<driver queues='2' ><host csum='off'/></driver>"),
        ("<driver></driver>", "<driver queues='2'><host csum='off'/></driver>"),
        ('<driver name="vhost"/>', '<driver name="vhost" queues="2"><host csum="off"/></driver>'),
        ("<driver queues='7' ><host/></driver>", "<driver queues='2' ><host csum='off'/></driver>"),
        (
            "<driver queues='&#50;'><host csum='&#x6f;ff'/></driver>",
            "<driver queues='&#50;'><host csum='&#x6f;ff'/></driver>",
        ),
        ("<driver><guest/></driver>", "<driver queues='2'><guest/><host csum='off'/></driver>"),
    ],
)
def test_an_element_is_filled_however_it_is_written(before: str, after: str) -> None:
    wish = policy(nic={"queues": 2, "host.csum": False})
    assert changed(BR0 + VIRTIO + before, wish) == BR0 + VIRTIO + after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<tune/>", "<tune><sndbuf>0</sndbuf></tune>"),
        ("<tune><sndbuf>1600</sndbuf></tune>", "<tune><sndbuf>0</sndbuf></tune>"),
        ("<tune><sndbuf/></tune>", "<tune><sndbuf>0</sndbuf></tune>"),
        ("<tune><sndbuf> 0\n</sndbuf></tune>", "<tune><sndbuf> 0\n</sndbuf></tune>"),
        ("<tune><sndbuf>16<!-- b -->00</sndbuf></tune>", "<tune><sndbuf>0<!-- b --></sndbuf></tune>"),
        ("<tune><sndbuf><?why so?>1600</sndbuf></tune>", "<tune><sndbuf>0<?why so?></sndbuf></tune>"),
    ],
)
def test_the_send_buffer_is_a_text(before: str, after: str) -> None:
    assert changed(BR0 + VIRTIO + before, policy(nic={"sndbuf": 0})) == BR0 + VIRTIO + after


def test_a_nic_in_the_metadata_is_none() -> None:
    copy = b"<metadata><devices>" + nic(BR0 + VIRTIO).encode() + b"</devices></metadata></domain>"
    document = domain().replace(b"</domain>", copy)
    assert domain_xml.change(document, [policy(nic={"queues": 2})]).document == document


def test_elements_of_another_namespace_are_not_ours() -> None:
    document = domain(nic(BR0 + VIRTIO)).replace(b"<interface ", b"<interface xmlns='urn:other' ")
    assert domain_xml.change(document, [policy(nic={"queues": 2})]).document == document


# --- which NICs --------------------------------------------------------------------------------------------

MAC = "<mac address='52:54:00:AA:00:01'/>"


@pytest.mark.parametrize(
    ("interface", "wish", "meant"),
    [
        (nic(BR0 + VIRTIO), policy(nic={"queues": 2}), True),
        (nic("<source bridge='br1'/>" + VIRTIO), policy(nic={"queues": 2}), False),
        (nic(BR0 + VIRTIO), policy(nic={"queues": 2}, match=GuestMatch(bridge="br1")), False),
        (nic(BR0 + VIRTIO), policy(bridge=None, nic={"queues": 2}, match=GuestMatch(bridge="br0")), True),
        (nic(MAC + VIRTIO, "ethernet"), policy(nic={"queues": 2}, match=GuestMatch(macs=("52:54:00:aa:00:01",))), True),
        (nic(MAC + VIRTIO), policy(nic={"queues": 2}, match=GuestMatch(macs=("52:54:00:aa:00:02",))), False),
        (nic(VIRTIO), policy(nic={"queues": 2}, match=GuestMatch(macs=("52:54:00:aa:00:01",))), False),
        (nic(VIRTIO, "direct"), policy(nic={"queues": 2}, match=GuestMatch(domains=("d?",))), True),
        (nic(VIRTIO, "direct"), policy(nic={"queues": 2}, match=GuestMatch(domains=("D*",))), False),
        (nic(VIRTIO), policy(nic={"queues": 2}, match=GuestMatch(domains=("*",), virtual_machines=True)), False),
        (nic("<source network='n' bridge='br0'/>" + VIRTIO, "network"), policy(nic={"queues": 2}), True),
        (nic(BR0 + "<model type='e1000'/>"), policy(nic={"queues": 2}), False),
        (nic(BR0), policy(nic={"queues": 2}), False),
        (nic(VIRTIO, "vhostuser"), policy(nic={"queues": 2}, match=GuestMatch(domains=("*",))), False),
        (nic(BR0 + VIRTIO + "<driver name='vfio'/>"), policy(nic={"queues": 2}), False),
    ],
)
def test_a_nic_is_selected_by_all_that_match_says_and_by_the_bridge_without_one(
    interface: str, wish: Policy, meant: bool
) -> None:
    result = domain_xml.change(domain(interface), [wish])
    assert bool(result.changes) is meant
    assert result.blocked == ()


def test_a_nic_of_another_kind_is_mentioned_only_when_its_address_is_written_out() -> None:
    user = domain(nic(MAC + VIRTIO, "user"))
    named = policy(nic={"queues": 2}, match=GuestMatch(macs=("52:54:00:aa:00:01",)))
    (row,) = domain_xml.change(user, [named]).blocked
    assert (row.reason, row.message) == (Reason.UNSUPPORTED, "a NIC of type user has no tap")
    (row,) = domain_xml.change(domain(nic(MAC), kind="lxc"), [named]).blocked
    assert "QEMU does not run domains of type lxc" in row.message


@pytest.mark.parametrize(
    ("interface", "says"),
    [
        (nic("<source network='lan'/>" + VIRTIO, "network"), "the bridge of libvirt's network lan is not known here"),
        (nic("<target dev='tap7'/>" + VIRTIO, "ethernet"), "which bridge tap tap7 is on is not known here"),
    ],
)
def test_a_bridge_that_only_the_host_knows_is_said_to_be_unknown(interface: str, says: str) -> None:
    result = domain_xml.change(domain(interface), [policy(nic={"queues": 2})])
    assert result.changes == ()
    (row,) = result.blocked
    assert (row.reason, says in row.message) == (Reason.UNREADABLE, True)


def test_what_the_host_knows_of_networks_and_taps_selects() -> None:
    known = Known(networks={"lan": "br0"}, taps={"tap7": "br1"})
    network, tap = nic("<source network='lan'/>" + VIRTIO, "network"), nic("<target dev='tap7'/>" + VIRTIO, "ethernet")
    result = domain_xml.change(domain(network, tap), [policy(nic={"queues": 2})], known)
    assert (len(result.changes), result.blocked) == (1, ())


def test_a_guest_section_that_can_mean_nothing_says_so() -> None:
    result = domain_xml.change(domain(nic(BR0 + VIRTIO)), [policy(bridge=None, nic={"queues": 2})])
    assert (result.changes, reasons(result)) == ((), [("guest.match", Reason.MISSING)])


def test_a_vhost_mode_alone_may_select_nothing_and_say_nothing() -> None:
    result = domain_xml.change(domain(nic(BR0 + VIRTIO)), [policy(bridge=None, mode=VhostMode.REQUIRED)])
    assert (result.changes, result.blocked) == ((), ())


# --- several policies --------------------------------------------------------------------------------------


def test_policies_merge_and_the_loser_is_told_who_won() -> None:
    low = policy("low", nic={"queues": 2, "packed": True})
    high = policy("high", nic={"queues": 4}, priority=5)
    result = domain_xml.change(domain(nic(BR0 + VIRTIO)), [low, high])
    assert b"<driver queues='4' packed='on'/>" in result.document
    (row,) = result.blocked
    assert (row.policy, row.setting, row.reason) == ("low", "guest.nic.queues", Reason.OVERRIDDEN_BY)
    assert (row.wanted, row.actual, row.message) == (2, 4, "policy high wants 4")


def test_two_policies_that_want_the_same_do_not_compete() -> None:
    document = domain(nic(BR0 + VIRTIO))
    result = domain_xml.change(document, [policy("b", nic={"queues": 2}), policy("a", nic={"queues": 2})])
    assert ([row.policy for row in result.changes], result.blocked) == (["a"], ())


@pytest.mark.parametrize(
    ("winner", "loser", "says"),
    [
        ({"host.csum": False}, {"host.tso4": True}, "it needs csum, which policy a wants false"),
        ({"host.tso4": True}, {"host.csum": False}, "policy a wants guest.nic.host.tso4, which needs it"),
        ({"guest.ecn": True, "guest.tso4": False}, {"guest.tso6": False}, "policy a wants guest.nic.guest.ecn"),
    ],
)
def test_a_contradiction_between_policies_is_lost_by_the_lower_one(
    winner: dict[str, Value], loser: dict[str, Value], says: str
) -> None:
    result = domain_xml.change(domain(nic(BR0 + VIRTIO)), [policy("b", nic=loser), policy("a", nic=winner)])
    (row,) = [row for row in result.blocked if row.reason is Reason.OVERRIDDEN_BY]
    assert (row.policy, says in row.message) == ("b", True)
    assert {change.policy for change in result.changes} == {"a"}


def test_an_offload_that_the_definition_starves_is_written_and_said_to_need_more() -> None:
    document = domain(nic(BR0 + VIRTIO + "<driver><host csum='off'/></driver>"))
    result = domain_xml.change(document, [policy(nic={"host.tso4": True})])
    assert b"<host csum='off' tso4='on'/>" in result.document
    assert reasons(result) == [("guest.nic.host.tso4", Reason.NEEDS_FEATURE)]


def test_a_policy_in_audit_changes_nothing_and_says_what_it_would() -> None:
    document = domain(nic(BR0 + VIRTIO))
    audit = Policy("p", mode=Mode.AUDIT, bridge=BridgeSpec("br0"), guest=GuestSpec(nic=(("queues", 2),)))
    result = domain_xml.change(document, [audit])
    assert (result.document, result.changes) == (document, ())
    assert reasons(result) == [("guest.nic.queues", Reason.AUDIT_ONLY)]


def test_vhost_that_an_emulated_domain_never_gets_is_said() -> None:
    result = domain_xml.change(domain(nic(BR0 + VIRTIO), kind="qemu"), [policy(mode=VhostMode.REQUIRED)])
    assert b"<driver name='vhost'/>" in result.document
    assert reasons(result) == [("vhost.mode", Reason.UNSUPPORTED)]


def test_polling_is_not_libvirts() -> None:
    wish = Policy("p", bridge=BridgeSpec("br0"), vhost=VhostSpec(VhostMode.REQUIRED, poll_microseconds=50))
    result = domain_xml.change(domain(nic(BR0 + VIRTIO)), [wish])
    assert reasons(result) == [("vhost.pollMicroseconds", Reason.UNSUPPORTED)]


# --- rows and single NICs ----------------------------------------------------------------------------------


def test_a_change_is_told_in_the_words_of_the_api() -> None:
    document = domain(nic(MAC + BR0 + VIRTIO + "<driver name='vhost' queues='2'><host csum='on'/></driver>"))
    wish = policy(mode=VhostMode.DISABLED, nic={"queues": 4, "host.csum": False, "packed": True})
    rows = domain_xml.change(document, [wish]).changes
    assert [(row.subject, row.setting, row.actual, row.wanted, row.policy) for row in rows] == [
        ("guest/db/52:54:00:aa:00:01", "vhost.mode", "Required", "Disabled", "p"),
        ("guest/db/52:54:00:aa:00:01", "guest.nic.queues", 2, 4, "p"),
        ("guest/db/52:54:00:aa:00:01", "guest.nic.packed", None, True, "p"),
        ("guest/db/52:54:00:aa:00:01", "guest.nic.host.csum", True, False, "p"),
    ]


def test_a_single_interface_is_changed_alone() -> None:
    element = (MAC + BR0 + VIRTIO).join(("<interface type='bridge'>\n", "\n</interface>\n")).encode()
    wish = policy(nic={"queues": "vcpus"}, match=GuestMatch(domains=("db",)))
    result = domain_xml.change_interface(element, [wish], guest="db", vcpus=3)
    assert result.document == element.replace(b"virtio'/>", b"virtio'/><driver queues='3'/>")
    assert domain_xml.change_interface(element, [wish], guest="web", vcpus=3).document == element
    with pytest.raises(errors.UsageError, match="not <interface>"):
        domain_xml.change_interface(b"<disk/>", [wish], guest="db")


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "no element found"),
        (b"<domain>", "line 1: no element found"),
        (b"<domain>\n<a></b></domain>", "line 2: mismatched tag"),
        (b"<domain/><domain/>", "junk after document element"),
        (b"<domain a='1' a='2'/>", "duplicate attribute"),
        (b"<domain>&other;</domain>", "undefined entity"),
        (b"<!DOCTYPE domain><domain/>", "document type"),
        (b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>", "document type"),
        (b"<network/>", "its first element is <network>"),
        (b"\xff\xfe<\0d\0/\0>\0", "not UTF-8: line 1"),
        (b"<\0d\0/\0>\0", "binary"),
        ("<domain>\né</domain>".encode("latin-1"), "not UTF-8: line 2"),
        (b"<?xml version='1.0' encoding='ISO-8859-1'?><domain/>", "it is ISO-8859-1: save it as UTF-8"),
        (b"<domain>" + b" " * markup.LARGEST + b"</domain>", "larger than 4 MiB"),
        (b"<domain>" + b"<a>" * 256 + b"</a>" * 256 + b"</domain>", "nested over 256 deep"),
    ],
)
def test_what_is_no_plain_domain_is_refused_with_a_sentence(document: bytes, says: str) -> None:
    with pytest.raises(errors.UsageError) as raised:
        domain_xml.change(document, [policy(nic={"queues": 2})])
    assert says in str(raised.value)


# --- the command -------------------------------------------------------------------------------------------

POLICY = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: guests}
spec:
  nodeSelector: {matchLabels: {zone: a}}
  bridge: {name: br0}
  guest: {nic: {queues: 2}}
"""


Command = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """`virtnet domain-xml` with a policy for zone a and these bytes on standard input; its exit code."""
    path = tmp_path / "guests.yaml"
    path.write_text(POLICY)

    def run(data: bytes, *more: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return main(["domain-xml", str(path), *(more or ("--node-label", "zone=a"))])

    return run


def test_the_command_prints_the_domain_and_says_by_its_code_whether_it_differs(
    command: Command, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = domain(nic("é" + BR0 + VIRTIO))
    assert command(before) == 2
    after = capsysbinary.readouterr().out
    assert after == before.replace(b"virtio'/>", b"virtio'/><driver queues='2'/>")
    assert command(after) == 0
    assert capsysbinary.readouterr() == (after, b"")


def test_the_command_prints_nothing_on_an_error(command: Command, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert command(b"<!DOCTYPE domain><domain/>") == 1
    assert command(domain(), "-") == 1
    assert command(domain(), "/nonexistent.yaml") == 1
    out, err = capsysbinary.readouterr()
    assert (out, len(err.splitlines())) == (b"", 3)


@pytest.mark.parametrize("words", [["domain-xml", "p.yaml"], ["plan", "-"]])
def test_a_standard_input_that_is_closed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(words) == 1
    assert capsys.readouterr() == ("", "standard input is closed: write < FILE\n")


def test_a_policy_for_other_nodes_is_left_out_and_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(domain(nic(BR0 + VIRTIO)), "--node-name", "n1") == 0
    assert "policy guests: its nodeSelector does not select n1: left out" in capsys.readouterr().err


def test_a_network_whose_bridge_cannot_be_known_is_said_on_standard_error(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(domain(nic("<source network='lan'/>" + VIRTIO, "network"))) == 0
    assert "the bridge of libvirt's network lan is not known here" in capsys.readouterr().err
