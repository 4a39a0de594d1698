"""The benchmark of guests runs and gives plausible rows; how fast anything was is never asserted."""

from __future__ import annotations

from tests.bench import figures, runner


def test_definitions_are_read_and_planned_and_an_edit_is_noticed() -> None:
    figures.check_plausible(runner.measure("guests", quick=True))
