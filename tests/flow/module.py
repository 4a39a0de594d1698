"""The fake's one kernel module, with modprobe(8)'s rules; it never looks at a real one."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field

from virtnet import errors
from virtnet.core.model import ModuleState, ModuleStatus, Process

DEFAULTS: Mapping[str, str] = {"experimental_zcopytx": "0"}
"""drivers/vhost/net.c; load-time only."""

FOLDERS = ("/etc/modules-load.d/", "/etc/modprobe.d/")


@dataclass(slots=True)
class FakeModule:
    """`files` holds every file of the two folders; `users` has one entry per open file descriptor."""

    name: str = "vhost_net"
    status: ModuleStatus = ModuleStatus.MISSING
    parameters: dict[str, str] = field(default_factory=dict)
    users: tuple[Process, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def state(self, *, with_users: bool) -> ModuleState:
        """As a look finds it; without a walk over /proc only the count of users is known."""
        loaded = self.status is ModuleStatus.LOADED
        return ModuleState(
            self.name,
            self.status,
            refcount=len(self.users) if loaded else None,
            parameters=types.MappingProxyType(dict(self.parameters)),
            users=self.users if with_users else (),
            files=types.MappingProxyType(dict(self.files)),
        )

    def load(self, parameters: Mapping[str, str]) -> None:
        """`modprobe NAME [PARAMETER=VALUE]…`: success when it is there; files' options first, then those given."""
        self._check_known(parameters)
        if self.status is ModuleStatus.MISSING:
            raise errors.NotSupported(f"Module {self.name} not found")
        if any(line[:2] == ["install", self.name] for line in self._rules()):
            raise errors.Refused(f"modprobe: Error running install command for {self.name}")
        if self.status is not ModuleStatus.ABSENT:
            return
        self.parameters = {**DEFAULTS, **self._options(), **parameters}
        self.status = ModuleStatus.LOADED

    def unload(self) -> None:
        """`rmmod NAME`; removing the absent is success."""
        if self.status is ModuleStatus.BUILT_IN:
            raise errors.Refused(f"Module {self.name} is builtin.")
        if self.users:
            raise errors.InUse(f"Module {self.name} is in use")
        if self.status is ModuleStatus.LOADED:
            self.status, self.parameters = ModuleStatus.ABSENT, {}

    def use(self, process: Process) -> None:
        """A process opens /dev/vhost-net, which loads the module (devname:vhost-net in its aliases)."""
        self.load({})
        self.users = (*self.users, process)

    def write(self, path: str, content: str) -> None:
        self._check_path(path)
        self.files[path] = content

    def remove(self, path: str) -> None:
        self._check_path(path)
        self.files.pop(path, None)

    def _rules(self) -> list[list[str]]:
        return [
            line.split()
            for path, content in sorted(self.files.items())
            if path.startswith(FOLDERS[1])
            for line in content.splitlines()
        ]

    def _options(self) -> dict[str, str]:
        given = [word for line in self._rules() if line[:2] == ["options", self.name] for word in line[2:]]
        options = dict(word.split("=", 1) for word in given)
        self._check_known(options)
        return options

    def _check_known(self, parameters: Mapping[str, str]) -> None:
        unknown = set(parameters) - set(DEFAULTS)
        assert not unknown, f"{self.name} has no parameters {sorted(unknown)}"

    @staticmethod
    def _check_path(path: str) -> None:
        folder, slash, name = path.rpartition("/")
        assert folder + slash in FOLDERS, f"{path} is outside of {FOLDERS}"
        assert name.endswith(".conf"), f"{path}: only *.conf is read"
