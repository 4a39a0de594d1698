"""The command `crds`: the CustomResourceDefinitions as files or on standard output."""

from __future__ import annotations

from pathlib import Path

from virtnet import errors
from virtnet.kube import crds


def write(directory: Path | None) -> None:
    """Into a directory, made where it is missing, or to standard output as one YAML stream."""
    files = crds.render()
    if directory is None:
        print("---\n".join(files.values()), end="")
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise errors.UsageError(f"{error.filename or directory} cannot be written: {error.strerror}") from error
