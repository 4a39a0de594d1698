"""The error tree: what the module draws is what the classes are, and each kind knows whether to retry."""

from __future__ import annotations

import inspect

import pytest

from virtnet import errors


def drawn_tree() -> dict[str, str]:
    """Child to parent, as the docstring of `virtnet.errors` draws it with box characters."""
    path: list[tuple[int, str]] = []
    parents: dict[str, str] = {}
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        name = next((word for word in line.split() if word in errors.__all__), "")
        if not name or not line.startswith("    "):
            continue
        depth = line.index(name)
        path = [step for step in path if step[0] < depth]
        if path:
            parents[name] = path[-1][1]
        path.append((depth, name))
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    classes = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    real = {name: kind.__base__.__name__ for name, kind in classes.items() if kind is not errors.VirtnetError}
    assert drawn_tree() == real


def test_every_error_class_is_exported_and_nothing_else_is() -> None:
    classes = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert set(errors.__all__) == classes


def test_only_what_may_work_next_time_is_retried() -> None:
    retried = {name for name in errors.__all__ if getattr(errors, name).retry}
    assert retried == {"Conflict", "Expired", "Gone", "InUse", "Temporary", "Unauthorized", "Unreachable"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.PolicyError("no such field", file="a.yaml", line=7, field="spec.x"), "a.yaml:7: spec.x: no such field"),
        (errors.PolicyError("empty file", file="a.yaml"), "a.yaml: empty file"),
        (errors.PolicyError("no such field", field="spec.x"), "spec.x: no such field"),
        (errors.PolicyError("not text"), "not text"),
    ],
)
def test_a_policy_error_says_file_line_field_and_sentence_as_far_as_known(error: Exception, text: str) -> None:
    assert str(error) == text


def test_a_busy_state_directory_names_the_process_that_holds_it() -> None:
    error = errors.StateBusy("held by process 42", pid=42)
    assert (error.pid, str(error), error.retry) == (42, "held by process 42", False)
