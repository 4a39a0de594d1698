"""The one error tree; every library's error is translated into it at the edge where it is raised.

    VirtnetError
    ├── UsageError            the user wrote something that must be changed; nothing was done
    │   ├── PolicyError       a policy document: file, line, field and a sentence
    │   └── StateBusy         another virtnet holds the state directory
    ├── HostError             the machine did not do what it was asked
    │   ├── Gone              the link, process or namespace is no longer there: look again
    │   ├── Refused           the kernel or the driver said no; the same request fails again
    │   ├── NotSupported      this kernel has no such thing
    │   ├── NotPermitted      a capability, device or mount is missing; the text names it
    │   ├── InUse             somebody holds it; works when they let go
    │   └── Temporary         may work when simply repeated
    ├── ApiError              the API server did not do what it was asked
    │   ├── Unreachable       no usable answer: refused, cut off, too slow, overloaded (429), broken (5xx)
    │   ├── Unauthorized      it does not know us (401): the token was rotated, or is not accepted
    │   ├── Forbidden         it knows us, and its rules do not allow this (403)
    │   ├── NotFound          there is no such object, or no such kind (404)
    │   ├── Conflict          somebody else was there first (409)
    │   ├── Expired           the resource version is too old (410): list again
    │   └── Invalid           it will never take this request (400, 415, 422 and the like)
    └── LedgerError           an original could not be recorded or read

Whether a request may be repeated belongs to the kind of error: ask `error.retry`, never compare texts.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ApiError",
    "Conflict",
    "Expired",
    "Forbidden",
    "Gone",
    "HostError",
    "InUse",
    "Invalid",
    "LedgerError",
    "NotFound",
    "NotPermitted",
    "NotSupported",
    "PolicyError",
    "Refused",
    "StateBusy",
    "Temporary",
    "Unauthorized",
    "Unreachable",
    "UsageError",
    "VirtnetError",
]


class VirtnetError(Exception):
    """Base of all errors of this package. `str(error)` is one sentence for an administrator."""

    retry: ClassVar[bool] = False


class UsageError(VirtnetError):
    """The user's input must be changed; nothing was done."""


class PolicyError(UsageError):
    """One policy document is not acceptable.

    `file` is the path as the user gave it ("-" for standard input), `line` is 1-based (0: unknown),
    `field` the API path ("spec.uplink.offloads.tso", empty: the whole document).
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, field: str = "") -> None:
        self.message, self.file, self.line, self.field = message, file, line, field
        super().__init__(message)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.field, self.message) if part)


class StateBusy(UsageError):
    """Another virtnet process (`pid`, 0 when unknown) holds the state directory."""

    def __init__(self, message: str, *, pid: int = 0) -> None:
        self.pid = pid
        super().__init__(message)


class HostError(VirtnetError):
    """The machine did not do what it was asked."""


class Gone(HostError):
    """What the request named is no longer there; the next look decides what that means."""

    retry = True


class Refused(HostError):
    """The kernel or the driver said no, and will say it again to the same request."""


class NotSupported(HostError):
    """This kernel or device has no such thing."""


class NotPermitted(HostError):
    """Something the process needs (a capability, a device node, a mount) is missing; the text names it."""


class InUse(HostError):
    """Somebody holds it."""

    retry = True


class Temporary(HostError):
    """May work when repeated."""

    retry = True


class ApiError(VirtnetError):
    """The API server did not do what it was asked; the text says what was asked, and its answer."""


class Unreachable(ApiError):
    """No usable answer came. Whether the request was carried out is not known."""

    retry = True


class Unauthorized(ApiError):
    """The API server does not know us; a token that was rotated meanwhile may be known."""

    retry = True


class Forbidden(ApiError):
    """The API server's rules do not allow it; they say it again until somebody changes them."""


class NotFound(ApiError):
    """There is no such object, or no such kind of objects."""


class Conflict(ApiError):
    """Somebody else changed or made the object first: look at it and decide again."""

    retry = True


class Expired(ApiError):
    """What was asked to be continued is too old: list again."""

    retry = True


class Invalid(ApiError):
    """The same request will never be taken."""


class LedgerError(VirtnetError):
    """An original could not be recorded or read back."""
