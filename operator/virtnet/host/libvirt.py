"""libvirt on a thread of its own: every call to it is made there, so nobody else ever waits longer than he wants to.

Two threads. One makes the calls, one after another; it connects anew, with growing pauses, whatever ended a connection.
The other is libvirt's event loop: it hears of domains that are defined, started, stopped or migrated in, and of a
connection that died. Both are daemon threads: a libvirtd that hangs does not keep the process from ending. The module
`libvirt` is imported only here, and only once somebody asks for guests.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from typing import Any, TypeVar

from virtnet import errors
from virtnet.core.model import Withheld

SYSTEM = "qemu:///system"
SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
"""Where the system's libvirt listens: the one daemon of old, or the one for QEMU (virtqemud, libvirt 5.6)."""

PAUSES = (0.5, 60.0)
"""Seconds between attempts to connect, doubling."""
KEEP_ALIVE = (5, 3)
"""Seconds between questions whether the other side lives, and how many may stay without an answer."""
SLOW_SECONDS = 3.0
"""Whoever does not answer for so long hangs, and that is reported."""
BREATH_SECONDS = 1.0
OLDEST = (6, 0, 0)

SO_ACCEPTCON = 1 << 16  # include/uapi/linux/net.h, __SO_ACCEPTCON: a socket that listens

# From libvirt's public headers, where numbers never change.
XML_SECURE, XML_INACTIVE = 1, 2  # virDomainXMLFlags
AFFECT_LIVE, AFFECT_CONFIG = 1, 2  # virDomainModificationImpact
LIFECYCLE, DEVICE_REMOVED, DEVICE_ADDED, DEVICE_REMOVAL_FAILED = 0, 15, 19, 22  # virDomainEventID

Result = TypeVar("Result")
Job = Callable[[Any], Result]
"""What is to be done with a connection (virConnect)."""


def default_uri(root: str = "/") -> str | None:
    """The system's libvirt when it listens here, else None."""
    return SYSTEM if any(os.path.exists(root + path.lstrip("/")) for path in SOCKETS) else None


def withheld(root: str = "/") -> Withheld | None:
    """Why we are kept from a system's libvirt that does listen: /proc/net/unix names its socket in any mount namespace.

    None when it does not listen, or can be reached.
    """
    found = None if default_uri(root) else next((path for path in SOCKETS if _listens(path, root)), None)
    if found is None:
        return None
    text = "and that is not to be seen here (in a container: the host's directory of it must be mounted)"
    return Withheld(f"libvirt listens at {found}, {text}")


def _listens(socket: str, root: str) -> bool:
    """Whether somebody in this network namespace accepts connections at this path; /run may be written as /var/run."""
    try:
        with open(f"{root}proc/self/net/unix", encoding="utf-8", errors="replace") as lines:
            fields = [line.split() for line in lines if socket in line]
    except OSError:
        return False
    ends = {socket, f"/var{socket}"}
    return any(each[-1] in ends and int(each[3], 16) & SO_ACCEPTCON for each in fields)


def is_installed() -> bool:
    """Whether the Python module is there; it is not imported to tell."""
    return importlib.util.find_spec("libvirt") is not None


class Thread:
    """One connection to libvirt at `uri`, kept for ever, and the thread that uses it.

    `opened` is called on that thread with each new connection, `lost` with the reason when there is none any more, and
    `slow` on any thread when a call takes too long (True) and when it is over (False).
    """

    def __init__(
        self,
        uri: str,
        opened: Callable[[Any], None],
        lost: Callable[[errors.HostError], None],
        slow: Callable[[bool], None],
    ) -> None:
        self.uri, self._opened, self._lost, self._slow = uri, opened, lost, slow
        self._jobs: list[tuple[Future[Any], Job[Any]]] = []
        self._something = threading.Condition()
        self._broken = self._closed = False
        self._thread: threading.Thread | None = None
        self._timer, self._asked, self._late = threading.Timer(0, _nothing), 0.0, threading.Event()

    def start(self) -> None:
        """Begin; starting twice is success."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="libvirt", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ask both threads to end, and wait for neither."""
        with self._something:
            self._closed = True
            self._something.notify()

    def submit(self, job: Job[Result]) -> Future[Result]:
        """Have something done when there is a connection; a job that is cancelled before it began never begins."""
        future: Future[Result] = Future()
        with self._something:
            self._jobs.append((future, job))
            self._something.notify()
        return future

    def call(self, job: Job[Result], within: float) -> Result:
        """Have something done within so many seconds; raises `Temporary` when it is late, or as `translated`."""
        future = self.submit(job)
        try:
            return future.result(within)
        except TooLate:
            future.cancel()
            raise errors.Temporary(f"libvirt at {self.uri} does not answer") from None

    # --- the thread ---

    def _run(self) -> None:
        """A mistake of ours ends the thread, with its traceback in the log: guests are unreadable then."""
        try:
            self._keep_connected()
        finally:
            if not self._closed:
                text = "the thread that talks to libvirt has ended; the log says why, and a restart begins anew"
                self._lost(errors.Temporary(text))

    def _keep_connected(self) -> None:
        pause = PAUSES[0]
        while not self._closed:
            try:
                with translated(), self._watched():
                    connection = self._connect()
                    self._opened(connection)
            except errors.HostError as error:
                self._lost(type(error)(f"libvirt at {self.uri} cannot be asked: {error}"))
                self._fail_all(errors.Temporary(str(error)))
                self._sleep(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, PAUSES[1])
                continue
            pause = PAUSES[0]
            self._serve(connection)
            with contextlib.suppress(errors.HostError), translated():
                connection.close()

    def _connect(self) -> Any:
        import libvirt

        _start_events()
        connection = libvirt.openAuth(self.uri, [[], lambda *_: -1, None], 0)
        connection.registerCloseCallback(self._died, None)
        with contextlib.suppress(libvirt.libvirtError):  # a driver within this process has no other side
            connection.setKeepAlive(*KEEP_ALIVE)
        self._broken = False
        check_version(connection.getLibVersion())
        return connection

    def _died(self, *_: object) -> None:
        """On the thread of events."""
        with self._something:
            self._broken = True
            self._something.notify()

    def _serve(self, connection: Any) -> None:
        """Do jobs until the connection is broken."""
        while True:
            with self._something:
                while not (self._jobs or self._broken or self._closed):
                    self._something.wait()
                if self._closed or self._broken:
                    break
                future, job = self._jobs.pop(0)
            if future.set_running_or_notify_cancel():
                self._do(future, job, connection)
        if self._broken:
            self._lost(errors.Temporary(f"the connection to libvirt at {self.uri} broke"))

    def _do(self, future: Future[Any], job: Job[Any], connection: Any) -> None:
        try:
            with translated(), self._watched():
                result = job(connection)
        except errors.VirtnetError as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(error)
            raise
        else:
            future.set_result(result)
        if not connection.isAlive():
            self._died()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Say that libvirt hangs while it does."""
        self._watch()
        try:
            yield
        finally:
            self._timer.cancel()
            self._caught_up()

    def breathe(self) -> None:
        """For a job of many calls: libvirt has just answered one of them."""
        if time.monotonic() - self._asked > BREATH_SECONDS:
            self._timer.cancel()
            self._watch()
            self._caught_up()

    def _watch(self) -> None:
        self._asked = time.monotonic()
        self._timer = threading.Timer(SLOW_SECONDS, self._tell)
        self._timer.daemon = True
        self._timer.start()

    def _tell(self) -> None:
        self._late.set()
        self._slow(True)

    def _caught_up(self) -> None:
        if self._late.is_set():
            self._late.clear()
            self._slow(False)

    def _fail_all(self, error: errors.HostError) -> None:
        with self._something:
            jobs, self._jobs = self._jobs, []
        for future, _ in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._something:
            while not self._closed and (left := end - time.monotonic()) > 0:
                self._something.wait(left)


def check_version(number: int) -> None:
    """virConnectGetLibVersion's number; raises `NotSupported` for a libvirt that is too old."""
    version = (number // 1_000_000, number // 1000 % 1000, number % 1000)
    if version < OLDEST:
        found, oldest = (".".join(map(str, each)) for each in (version, OLDEST))
        raise errors.NotSupported(f"this is libvirt {found}, and virtnet works with {oldest} or later")


def _nothing() -> None:
    """For a timer that is never started."""


# --- the module, once for the process ----------------------------------------------------------------------

_events = threading.Lock()
_event_thread: list[threading.Thread] = []


def _start_events() -> None:
    """libvirt's own event loop, which has to be there before a connection is opened."""
    import libvirt

    with _events:
        if not _event_thread:
            libvirt.registerErrorHandler(lambda *_: None, None)  # or it prints each error to standard error
            libvirt.virEventRegisterDefaultImpl()
            _event_thread.append(threading.Thread(target=_run_events, name="libvirt-events", daemon=True))
            _event_thread[0].start()


def _run_events() -> None:
    import libvirt

    while True:
        libvirt.virEventRunDefaultImpl()


def monitor_command(domain: Any, line: str) -> str:
    """Pass one line on to the QEMU of a running domain (virDomainQemuMonitorCommand); its answer, errors and all."""
    import libvirt_qemu

    return str(libvirt_qemu.qemuMonitorCommand(domain, line, 0))


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """libvirt's errors as `HostError`s: virErrorNumber in libvirt's include/libvirt/virterror.h."""
    import libvirt

    try:
        yield
    except libvirt.libvirtError as error:
        raise _kind(libvirt, error)(_sentence(error)) from error


def _kind(libvirt: Any, error: Any) -> type[errors.HostError]:
    """Of a system call that failed, libvirt keeps errno in the error's first number (virReportSystemError)."""
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in {errno.EACCES, errno.EPERM}:
        return errors.NotPermitted
    known: tuple[tuple[type[errors.HostError], str], ...] = (
        (errors.Gone, "NO_DOMAIN NO_NETWORK"),
        (errors.NotSupported, "NO_SUPPORT OPERATION_UNSUPPORTED CONFIG_UNSUPPORTED ARGUMENT_UNSUPPORTED"),
        (errors.NotPermitted, "AUTH_FAILED AUTH_CANCELLED AUTH_UNAVAILABLE ACCESS_DENIED OPERATION_DENIED"),
        (errors.Refused, "XML_ERROR XML_DETAIL XML_INVALID_SCHEMA INVALID_ARG OPERATION_INVALID OPERATION_FAILED"),
    )
    for kind, names in known:
        if code in {getattr(libvirt, f"VIR_ERR_{name}", None) for name in names.split()}:
            return kind
    return errors.Temporary


def _sentence(error: Any) -> str:
    text = error.get_error_message() or str(error)
    return " ".join(str(text).split())
