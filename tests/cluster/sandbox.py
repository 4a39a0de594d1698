"""Network, mount and PID namespaces held by one process; whatever runs in them ends with it.

Nothing is remembered but two files: a sandbox that was left behind by a killed run is found and ended by the next one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import assets, commands

# /proc/self still shows the process as the outside sees it, until the namespace gets a /proc of its own.
INIT = """set -eu
read -r pid rest < /proc/self/stat
echo "$pid" > {home}/init.pid
{setup}
mount -t proc proc /proc
touch {home}/ready
exec {pause} {home}
"""


class TooLate(AssertionError):
    """Something did not come in its time."""


def wait_until(what: str, is_so: Callable[[], bool], seconds: float = 30, every: float = 0.1) -> None:
    """TooLate, with `what`, when it is not so within `seconds`."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TooLate(f"not within {seconds} s: {what}")
        time.sleep(every)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """`home` is its directory outside: the files of its processes and their logs."""

    home: Path

    def start(self, setup: str = "") -> None:
        """Make the namespaces; `setup` is shell text that runs in them first, as their first process."""
        (self.home / "log").mkdir(parents=True)
        script = INIT.format(home=shlex.quote(str(self.home)), pause=assets.path("pause"), setup=setup)
        command = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "sh", "-c", script)
        log = self.log("init")
        # Nobody waits for it: it outlives the process that starts it.
        commands.run("sh", "-c", f"setsid {shlex.join(command)} < /dev/null > {shlex.quote(str(log))} 2>&1 &")
        try:
            wait_until(f"{self.home.name} is set up", (self.home / "ready").exists, 20, 0.02)
        except TooLate as error:
            raise TooLate(f"{error}: {log.read_text()}") from error

    @property
    def init(self) -> int | None:
        """The first process, by its number outside; None when it is not alive (any more)."""
        try:
            pid = int((self.home / "init.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # Its script, or what that became: the number may be another process's by now.
        its = (f"{self.home}/init.pid".encode(), f"\0{self.home}\0".encode())
        return pid if any(words in command for words in its) else None

    def enter(self, *command: str, namespaces: str = "--net --mount --pid") -> tuple[str, ...]:
        """The command line that runs a command in here."""
        pid = self.init
        assert pid is not None, f"{self.home.name} is not running"
        return ("nsenter", "--target", str(pid), *namespaces.split(), "--", *command)

    def run(self, *command: str, text: str = "", seconds: float = 60, env: Mapping[str, str] | None = None) -> str:
        """Run a command in all of the namespaces; what it prints."""
        return commands.run(*self.enter(*command), text=text, seconds=seconds, env=env)

    def net(self, *command: str, text: str = "", seconds: float = 60) -> str:
        """Run a command of the machine in the network namespace alone; what it prints."""
        return commands.run(*self.enter(*command, namespaces="--net"), text=text, seconds=seconds)

    def spawn(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> None:
        """Start a process that stays; its output is in log/NAME.log.

        The shell ends at once and leaves the process to the first one of the sandbox, which reaps it.
        """
        log = shlex.quote(str(self.log(name)))
        script = f"setsid {shlex.join(command)} < /dev/null >> {log} 2>&1 & echo $!"
        inside = self.run("sh", "-c", script, env=env)
        (self.home / f"{name}.pid").write_text(inside)

    def log(self, name: str) -> Path:
        return self.home / "log" / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """A spawned process by its number outside; None when it has ended."""
        try:
            inside = (self.home / f"{name}.pid").read_text().strip()
        except OSError:
            return None
        return next((outside for outside, numbers in self._processes() if numbers[-1] == inside), None)

    def _processes(self) -> list[tuple[int, list[str]]]:
        """All that live in the PID namespace itself (not in a pod's): number outside, and from outside to inside."""
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if os.readlink(process / "ns/pid") == own:
                    found.append((int(process.name), _numbers(process)))
        return found

    def signal(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        assert pid is not None, f"{name} is not running: {self.tail(name)}"
        os.kill(pid, number)

    def stop(self, name: str, seconds: float = 20) -> None:
        """End a spawned process: asked first, then killed. Nothing when it is not there."""
        pid = self.pid(name)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if pid is None or self.pid(name) != pid:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            with contextlib.suppress(TooLate):
                wait_until(f"{name} has ended", lambda: self.pid(name) != pid, seconds)
        assert self.pid(name) != pid, f"{name} outlives SIGKILL"

    def tail(self, name: str, lines: int = 20) -> str:
        path = self.log(name)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def end(self) -> None:
        """Kill the first process, and with it everything in here; back when all of it is gone."""
        pid = self.init
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        wait_until(f"{self.home.name} is gone", lambda: not _alive(pid), 30, 0.05)


def _numbers(process: Path) -> list[str]:
    lines = (process / "status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith("NSpid:"))


def _alive(pid: int) -> bool:
    """A zombie is dead, but the kernel lets it become one only when the whole PID namespace is empty."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
