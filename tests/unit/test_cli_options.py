"""What arguments mean: durations of holds, labels of nodes."""

from __future__ import annotations

import pytest

from virtnet import errors
from virtnet.cli import where


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172800), ("30d", 2592000)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert where.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "0h", "-1h", "1.5h", "1h30m", "1w", "1 h", "1H", "٣h", "1h\n", "1e3s"])
def test_what_is_no_duration_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(errors.UsageError, match="write 90s, 15m, 1h or 2d"):
        where.seconds(text)


@pytest.mark.parametrize("text", ["31d", "99999999h", "721h"])
def test_a_hold_that_nobody_would_remember_is_refused(text: str) -> None:
    with pytest.raises(errors.UsageError, match="at most 30d"):
        where.seconds(text)


@pytest.mark.parametrize(("text", "label"), [("a=b", ("a", "b")), ("zone=", ("zone", "")), ("x=y=z", ("x", "y=z"))])
def test_a_label_is_what_stands_before_and_after_the_first_sign(text: str, label: tuple[str, str]) -> None:
    assert where.label(text) == label


@pytest.mark.parametrize("text", ["", "zone", "=value"])
def test_a_label_without_key_or_sign_is_refused(text: str) -> None:
    with pytest.raises(errors.UsageError, match="write KEY=VALUE"):
        where.label(text)
