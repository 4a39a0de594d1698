"""Reads and changes one kernel module and our two files about it; it never touches a file without our mark."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from virtnet.core import modules
from virtnet.core.model import ModuleState, ModuleStatus, Process
from virtnet.errors import HostError, InUse, NotPermitted, NotSupported, Refused, Temporary
from virtnet.host import processes
from virtnet.host.namespaces import in_initial_user_namespace

MODPROBE_SECONDS = 30
_CAP_SYS_MODULE = 16  # include/uapi/linux/capability.h


def read(name: str, *, users: Sequence[Process] = (), root: str = "/", release: str | None = None) -> ModuleState:
    """The module now. `users` is what a walk over /proc found; `release` is the kernel's, as `uname -r` says it.

    Everything is read below `root`, files are reported without it.
    """
    directory = Path(root, "sys/module", name)
    status = _status(name, directory, _tree(root, release))
    if status is ModuleStatus.MISSING and _is_hidden(root, release):
        status = ModuleStatus.ABSENT  # not loaded is all that can be said: whoever wants it loaded is told what lacks
    loaded = status is ModuleStatus.LOADED
    return ModuleState(
        name,
        status,
        refcount=_number(directory / "refcnt") if loaded else None,
        parameters=dict(_parameters(directory / "parameters")),
        users=tuple(users),
        files=dict(_files(name, root)),
    )


def load(name: str, parameters: Sequence[tuple[str, int]] = (), *, root: str = "/") -> None:
    """Load the module with `parameters` by modprobe(8), and look whether it is there with them.

    One that is loaded with these values is success; with other values it is `InUse` or `Refused`. A rule of ours that
    keeps the module out is passed over, because the policy that wrote it has changed; another's rule is obeyed.
    """
    before = read(name, root=root)
    if before.status in {ModuleStatus.LOADED, ModuleStatus.BUILT_IN}:
        _verify_parameters(before, parameters)
        return
    own_rule = before.files.get(modules.rule_file(name), "")
    passing = ["--ignore-install"] if modules.is_ours(own_rule) and modules.keeps_out(own_rule, name) else []
    text = _run(["modprobe", *passing, name, *(f"{key}={value}" for key, value in parameters)])
    after = read(name, root=root)
    if after.status not in {ModuleStatus.LOADED, ModuleStatus.BUILT_IN}:
        raise _load_refused(after, text, root)
    _verify_parameters(after, parameters)


def unload(name: str, *, root: str = "/") -> None:
    """Unload the module, and look whether it is gone.

    By rmmod(8), which takes just this one: `modprobe -r` would take tun along when no tap is there at the moment.
    """
    if _is_gone(read(name, root=root)):
        return
    text = _run(["rmmod", name])
    after = read(name, root=root)
    if not _is_gone(after):
        raise _unload_refused(after, text, root)


def write_file(path: str, content: str, *, root: str = "/") -> None:
    """Write one of our marked files whole: atomic, on the disk when this returns. A foreign file is `Refused`."""
    if not modules.is_ours(content):
        raise ValueError(f"what is written to {path} must begin with {modules.MARK!r}")
    target = _below(root, path)
    if _our_content(target) == content:
        return
    with _disk(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, content)


def remove_file(path: str, *, root: str = "/") -> None:
    """Remove one of our marked files. One that is not there is success, a foreign one is `Refused`."""
    target = _below(root, path)
    if _our_content(target) is None:
        return
    with _disk(path):
        target.unlink(missing_ok=True)
        _sync_directory(target.parent)


# --- reading -----------------------------------------------------------------------------------------------


def _status(name: str, directory: Path, tree: Path) -> ModuleStatus:
    """Only a loadable module has `initstate` (kernel/module/sysfs.c); one that is going is as good as gone."""
    if _text(directory / "initstate") in {"live", "coming"}:
        return ModuleStatus.LOADED
    builtin, known = _text(tree / "modules.builtin"), _text(tree / "modules.dep")
    if builtin is None and known is None and directory.is_dir() and not (directory / "initstate").exists():
        # No list to ask: only the directory of a built-in module can lack the file for long.
        return ModuleStatus.BUILT_IN
    if builtin is not None and _lists(builtin, name):
        return ModuleStatus.BUILT_IN
    there = _lists(known, name) if known is not None else _has_file(tree, name)
    return ModuleStatus.ABSENT if there else ModuleStatus.MISSING


def _tree(root: str, release: str | None = None) -> Path:
    return Path(root, "lib/modules", release or os.uname().release)


def _is_hidden(root: str, release: str | None = None) -> bool:
    """Whether the kernel takes modules, but where they lie is not to be seen: a container without that mount."""
    return not _tree(root, release).is_dir() and Path(root, "proc/modules").exists()


def _lists(text: str, name: str) -> bool:
    """Whether modules.dep(5) or modules.builtin names the module; a file's name may have - for _."""
    names = (f"/{spelling}.ko" for spelling in {name, name.replace("_", "-")})
    return any(name in text for name in names)


def _has_file(tree: Path, name: str) -> bool:
    spellings = (name, name.replace("_", "-"))
    return any(
        file.startswith(f"{spelling}.ko") for _, _, files in os.walk(tree) for file in files for spelling in spellings
    )


def _parameters(directory: Path) -> Iterator[tuple[str, str]]:
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(directory)):
            value = _text(directory / name)
            if value is not None:
                yield name, value


def _files(name: str, root: str) -> Iterator[tuple[str, str]]:
    """Our two files, for those that exist. What cannot be read as a plain file has no mark, so it is not ours."""
    for path in (modules.load_file(name), modules.rule_file(name)):
        content = _content(_below(root, path))
        if content is not None:
            yield path, content


def _content(target: Path) -> str | None:
    """None when nothing is there; "" for what is no plain readable file (a link's content is another file's)."""
    if not os.path.lexists(target):
        return None
    return "" if target.is_symlink() else _raw(target) or ""


def _text(path: Path) -> str | None:
    raw = _raw(path)
    return None if raw is None else raw.strip()


def _raw(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


# --- kmod --------------------------------------------------------------------------------------------------


def _run(words: Sequence[str]) -> str:
    """Run a tool of kmod; "" when it says success, else what it says, without its own name before it."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MODPROBE_SECONDS,
            check=False,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise Temporary(f"{' '.join(words)} did not end within {MODPROBE_SECONDS} s") from error
    except OSError as error:
        raise NotPermitted(f"{words[0]} cannot be run ({error.strerror}): the package kmod has it") from error
    said = [line.partition(": ")[2].partition(": ")[2] or line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else "; ".join(said) or f"{words[0]} ended with {done.returncode}"


def _is_gone(state: ModuleState) -> bool:
    return state.status in {ModuleStatus.ABSENT, ModuleStatus.MISSING}


def _verify_parameters(state: ModuleState, parameters: Sequence[tuple[str, int]]) -> None:
    for key, wanted in parameters:
        current = modules.value(state, modules.PARAMETER + key)
        if current is None:
            raise NotSupported(f"{state.name} has no parameter {key}: the kernel has ignored it")
        if current == wanted:
            continue
        text = f"{state.name} is loaded with {key}={current}"
        if state.status is ModuleStatus.LOADED and state.refcount:
            raise InUse(f"{text} and in use by {_users(state)}")
        raise Refused(f"{text}; only a reload changes it")


def _load_refused(after: ModuleState, text: str, root: str) -> HostError:
    """Why loading failed, by looking again; modprobe's words are passed on, not interpreted."""
    name, said = after.name, f": {text}" if text else ""
    if after.status is ModuleStatus.MISSING:
        return NotSupported(f"the running kernel {os.uname().release} does not have {name}{said}")
    rule = _rule_that_keeps_out(name, root)
    if rule is not None:
        return Refused(f"the rule in {rule} keeps {name} out{said}")
    return _not_allowed(name, said, root) or Refused(f"{name} cannot be loaded{said or ': it was gone again at once'}")


def _unload_refused(after: ModuleState, text: str, root: str) -> HostError:
    name, said = after.name, f": {text}" if text else ""
    if after.status is ModuleStatus.BUILT_IN:
        return Refused(f"{name} is built into the running kernel")
    if after.refcount:
        return InUse(f"{name} is in use by {_users(after)}")
    if not text:
        return Temporary(f"{name} was unloaded, and something loaded it again at once")
    return _not_allowed(name, said, root) or Refused(f"{name} cannot be unloaded{said}")


def _not_allowed(name: str, said: str, root: str) -> HostError | None:
    lacking = [] if _may_change_modules() else ["CAP_SYS_MODULE in the machine's own user namespace"]
    if _is_hidden(root):
        lacking.append(f"{_tree(root)} (in a container: the host's /lib/modules mounted)")
    if lacking:
        return NotPermitted(f"{name}: needed and not there: {' and '.join(lacking)}{said}")
    if _text(Path(root, "proc/sys/kernel/modules_disabled")) == "1":
        return Refused(f"{name}: the sysctl kernel.modules_disabled is set until the next boot{said}")
    return None


def _may_change_modules() -> bool:
    """kernel/module/main.c asks capable(), which counts only in the initial user namespace."""
    status = _raw(Path("/proc/self/status")) or ""
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_SYS_MODULE & 1) and in_initial_user_namespace()


def _rule_that_keeps_out(name: str, root: str) -> str | None:
    """The file with an `install` rule for the module, in the order of modprobe.d(5)."""
    for directory in ("etc", "run", "usr/local/lib", "usr/lib", "lib"):
        for file in sorted(Path(root, directory, "modprobe.d").glob("*.conf")):
            if modules.keeps_out(_raw(file) or "", name):
                return str(file)
    return None


def _users(state: ModuleState) -> str:
    holders = processes.look().vhost if state.name == modules.NAME else ()
    if holders:
        return ", ".join(str(holder) for holder in holders)
    return f"something that cannot be seen from here (reference count {state.refcount})"


# --- our files ---------------------------------------------------------------------------------------------


def _below(root: str, path: str) -> Path:
    return Path(root, path.lstrip("/"))


def _our_content(target: Path) -> str | None:
    """What our file says; None when there is none. Anything else of that name is `Refused`."""
    content = _content(target)
    if content is not None and not modules.is_ours(content):
        raise Refused(f"{target} lacks the line {modules.MARK!r}, so it is not ours: left alone")
    return content


def _replace(target: Path, content: str) -> None:
    import tempfile  # brings archives and compression along, for a file in a month

    # kmod and systemd read only *.conf, so a leftover of a kill is never taken for a rule.
    descriptor, temporary = tempfile.mkstemp(prefix=".virtnet-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EROFS:
            directory = os.path.dirname(path)
            text = (
                f"{path} cannot be changed: {error.strerror} (in a container: the host's {directory} must be mounted)"
            )
            raise NotPermitted(text) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise NotPermitted(f"{path} cannot be changed: {error.strerror}") from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise Temporary(f"{path} cannot be changed: {error.strerror}") from error
        raise Refused(f"{path} cannot be changed: {error.strerror}") from error
