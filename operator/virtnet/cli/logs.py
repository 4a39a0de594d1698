"""Structured log lines on standard error: logfmt for people and grep, JSON for collectors."""

from __future__ import annotations

import json
import logging
import time


def start(form: str, level: str) -> None:
    """Log to standard error from now on; `form` is "text" (logfmt) or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Logfmt())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _fields(record: logging.LogRecord) -> dict[str, str]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields = {
        "time": f"{moment}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if record.exc_info:
        fields["error"] = logging.Formatter().formatException(record.exc_info)
    return fields


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record))


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_quoted(value)}" for name, value in _fields(record).items())


def _quoted(text: str) -> str:
    """Quoted as JSON does where a bare word would not do."""
    return text if text.isprintable() and not set(text) & set(' "=\\') and text else json.dumps(text)
