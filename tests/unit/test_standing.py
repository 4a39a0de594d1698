"""What stands in the way of a change, and which of several obstacles is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from virtnet.core.model import Link, Reason, Setting
from virtnet.core.standing import Refusal, Standing

ETH0, ETH1 = Link(2, "eth0"), Link(3, "eth1")
RX = Setting(2, "rings.rx")
ROUNDED = Refusal(500, 512, Reason.REFUSED, "the driver answered another value")

STANDINGS = {
    "nothing": (Standing(), None),
    "the node is held": (Standing(held="until noon"), (Reason.HELD, "held until noon: reported, not changed")),
    "the link is held": (
        Standing(held_links={"eth0": "until noon"}),
        (Reason.HELD, "held until noon: reported, not changed"),
    ),
    "another link is held": (Standing(held_links={"eth1": "until noon"}), None),
    "it was rolled back": (Standing(rolled_back={("eth0", "rings.rx"): "no way"}), (Reason.ROLLED_BACK, "no way")),
    "another setting was rolled back": (Standing(rolled_back={("eth0", "mtu"): "no way"}), None),
    "somebody fights for it": (Standing(contended={RX: "fight"}), (Reason.CONTENDED, "fight")),
    "its original cannot be recorded": (Standing(unrecorded={RX: "disk full"}), (Reason.FAILED, "disk full")),
    "the driver made another value of it": (
        Standing(refused={RX: ROUNDED}),
        (Reason.REFUSED, "the driver answered another value"),
    ),
    "another value was refused": (Standing(refused={RX: replace(ROUNDED, wanted=400)}), None),
    "the refused value has been changed since": (Standing(refused={RX: replace(ROUNDED, answered=256)}), None),
}


@pytest.mark.parametrize(("standing", "obstacle"), STANDINGS.values(), ids=STANDINGS)
def test_an_obstacle(standing: Standing, obstacle: tuple[Reason, str] | None) -> None:
    assert standing.obstacle(RX, "eth0", 500, 512) == obstacle
    assert standing.knows(ETH0) or obstacle is None


def test_the_most_general_obstacle_is_told() -> None:
    everything = {
        "held": "h",
        "rolled_back": {("eth0", "rings.rx"): "r"},
        "contended": {RX: "c"},
        "unrecorded": {RX: "u"},
        "refused": {RX: ROUNDED},
    }
    told = []
    while everything:
        found = Standing(**everything).obstacle(RX, "eth0", 500, 512)  # type: ignore[arg-type]
        assert found is not None
        told.append(found[0])
        del everything[next(iter(everything))]
    assert told == [Reason.HELD, Reason.ROLLED_BACK, Reason.CONTENDED, Reason.FAILED, Reason.REFUSED]


@pytest.mark.parametrize(
    "standing",
    [
        pytest.param(Standing(contended={RX: ""}), id="a fight"),
        pytest.param(Standing(refused={RX: ROUNDED}), id="a refusal"),
        pytest.param(Standing(unrecorded={RX: ""}), id="a full ledger"),
        pytest.param(Standing(rolled_back={("eth0", "mtu"): ""}), id="a rollback"),
        pytest.param(Standing(held_links={"eth0": ""}), id="a hold"),
    ],
)
def test_links_about_which_nothing_is_known_are_asked_nothing(standing: Standing) -> None:
    assert standing.knows(ETH0)
    assert not standing.knows(ETH1)


def test_a_held_node_holds_every_link_however_long() -> None:
    assert Standing(held="").knows(ETH1)
    assert Standing(held="").hold("eth1") is not None


@pytest.mark.parametrize(
    ("wanted", "current", "answer"),
    [
        pytest.param(500, 512, 512, id="the value that the driver rounds to is the wanted one"),
        pytest.param(500, 256, 500, id="a value that it did not answer is not"),
        pytest.param(400, 512, 400, id="nor is the answer to another wish"),
        pytest.param(500, None, 500, id="nor is nothing"),
    ],
)
def test_what_a_setting_is_when_it_is_as_wanted(wanted: int, current: int | None, answer: int) -> None:
    assert Standing(refused={RX: ROUNDED}).answer(RX, wanted, current) == answer
