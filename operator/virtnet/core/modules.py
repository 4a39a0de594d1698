"""What differs on a kernel module: loaded or not, its parameters, and the files that keep it so over a reboot.

    asked      there       what is said or done
    Loaded     Absent      load it with the asked parameters
    Loaded     BuiltIn     satisfied
    Loaded     Missing     Missing
    Absent     Loaded      unload it; InUse while somebody holds it
    Absent     BuiltIn     BuiltIn
    Absent     Missing     satisfied
    parameter  Loaded      unload and load again; InUse while somebody holds it
    parameter  unknown     Unsupported, with the names that the module has
    parameter  BuiltIn     BuiltIn: only the kernel's command line can set it
    persist    any         write or remove our marked files; Foreign when a file of that name is not ours

Steps that serve one setting carry the same row; equal rows are one row to the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from virtnet.core.model import (
    EMPTY,
    Entry,
    LoadModule,
    ModuleState,
    ModuleStatus,
    ModuleWish,
    Reason,
    RemoveModuleFile,
    Row,
    Setting,
    Step,
    UnloadModule,
    Value,
    WriteModuleFile,
)
from virtnet.values import frozen

NAME = "vhost_net"
MARK = "# managed by virtnet"
PARAMETER = "parameters."
PARAMETER_PATH = "vhost.module.parameters."
PERSIST_PATH = "vhost.module.persist"
STATE_PATH = "vhost.module.state"


@frozen
class ModuleWant:
    """What the policies want of one module.

    `path` is the API field that asked for `state` ("vhost.module.state" or "vhost.mode"). `parameters` are
    (name, value, policy). With state Unmanaged only the parameters are wanted, whenever the module is loaded.
    """

    state: ModuleWish
    policy: str
    path: str = STATE_PATH
    parameters: tuple[tuple[str, int, str], ...] = ()
    persist: bool = True
    persist_policy: str = ""
    name: str = NAME


def load_file(name: str) -> str:
    """Our file that loads the module at boot: modules-load.d(5)."""
    return f"/etc/modules-load.d/virtnet-{name}.conf"


def rule_file(name: str) -> str:
    """Our file with the module's options, or with the rule that keeps it out: modprobe.d(5)."""
    return f"/etc/modprobe.d/virtnet-{name}.conf"


def is_ours(content: str) -> bool:
    """Whether a file's content carries our mark as its first line."""
    return content.partition("\n")[0].rstrip() == MARK


def keeps_out(content: str, name: str) -> bool:
    """Whether a modprobe.d file has an `install` rule for the module, which makes `modprobe NAME` run that instead."""
    return any(line.split()[:2] == ["install", name] for line in content.splitlines())


def diff(want: ModuleWant, observed: ModuleState, lost: Mapping[str, int] = EMPTY) -> tuple[list[Step], list[Row]]:
    """The steps that make the module as wanted, in order, and a row for everything that cannot be had now.

    `lost` are the parameters that went with a module which we unloaded; it is loaded with them again. Files come
    first: between a file and the module that it speaks of, nobody else can load the module the old way.
    """
    steps, rows = _file_steps(want, observed)
    for more_steps, more_rows in (_state_diff(want, observed, lost), _parameter_diff(want, observed)):
        steps += more_steps
        rows += more_rows
    return steps, rows


def unmet(want: ModuleWant, rows: Iterable[Row]) -> Iterator[Setting]:
    """The settings that these rows of `diff` say cannot be had now: nobody has seen them as wanted."""
    keys = {want.path: "state", PERSIST_PATH: "persist"}
    keys |= {PARAMETER_PATH + name: PARAMETER + name for name, _, _ in want.parameters}
    return (Setting(want.name, keys[row.setting]) for row in rows)


def claims(want: ModuleWant, observed: ModuleState) -> list[Entry]:
    """An entry for every setting that `want` manages, with what is there now as its original."""
    entries = []
    if want.state is not ModuleWish.UNMANAGED:
        entries.append(_claim(observed, "state", str(want.state), want.policy))
    for name, value, policy in want.parameters:
        entries.append(_claim(observed, PARAMETER + name, value, policy))
    if want.state is ModuleWish.ABSENT:
        entries += _going(want, observed)
    if want.persist:
        entries.append(_claim(observed, "persist", True, want.persist_policy or want.policy))
    return entries


def value(observed: ModuleState, key: str) -> Value | None:
    """What a setting of the module is now; None where there is no such thing.

    `persist` is True while a file of ours exists: a file with our mark was never there before us.
    """
    if key == "state":
        return str(observed.status)
    if key == "persist":
        return True if any(is_ours(content) for content in observed.files.values()) else None
    text = observed.parameters.get(key.removeprefix(PARAMETER))
    return None if text is None else _parsed(text)


def restore(
    entries: Mapping[str, Entry], observed: ModuleState, want: ModuleWant | None = None
) -> tuple[list[Step], list[Row], list[Setting]]:
    """How to put back what was there before us: steps, what must stay or be skipped and why, and what to forget.

    `entries` are by `Setting.key`, and only those to restore: what to do about `deletion` is the caller's to decide.
    `want` is what the policies still want of the module: a reload keeps its parameters, and a module that is to be
    absent has none to put back. A setting is forgotten when it is as it was, when there is nothing to put back (a
    parameter of a module that was not loaded: the kernel does not tell its default), or when it is neither ours nor
    the original. The others stay in the ledger until a later look says so.
    """
    returning = _Return.of(entries, observed, want)
    return returning.steps(), returning.rows(), returning.forgotten()


def _claim(observed: ModuleState, key: str, wanted: Value, policy: str) -> Entry:
    original = None if key == "persist" else value(observed, key)
    return Entry(Setting(observed.name, key), original, wanted, policy)


def _going(want: ModuleWant, observed: ModuleState) -> Iterator[Entry]:
    """Parameters go with the module: that is a change of ours, too."""
    for name in observed.parameters.keys() - {name for name, _, _ in want.parameters}:
        original = value(observed, PARAMETER + name)
        if isinstance(original, int):
            yield Entry(Setting(observed.name, PARAMETER + name), original, None, want.policy)


def _went(entry: Entry) -> bool:
    return entry.setting.key.startswith(PARAMETER) and entry.wanted is None


def lost(entries: Mapping[str, Entry], want: ModuleWant | None) -> dict[str, int]:
    """The originals of parameters that nobody wants and that went with a module which we unloaded."""
    asked = {name for name, _, _ in want.parameters} if want else set()
    return dict(number for entry in entries.values() if _went(entry) and (number := _number(entry))[0] not in asked)


def keys(
    entries: Mapping[str, Entry], claimed: Iterable[Entry], want: ModuleWant | None, frozen: frozenset[str]
) -> frozenset[str]:
    """What is wanted or frozen, with the parameters that went with a module which stays out."""
    stays_out = "state" in frozen or (want is not None and want.state is ModuleWish.ABSENT)
    went = {key for key, entry in entries.items() if stays_out and _went(entry)}
    return frozen | {entry.setting.key for entry in claimed} | went


def _parsed(text: str) -> Value:
    """A parameter as sysfs shows it; booleans are Y and N there (kernel/params.c)."""
    text = text.strip()
    if text in {"Y", "N"}:
        return int(text == "Y")
    try:
        return int(text, 0)
    except ValueError:
        return text


def _subject(observed: ModuleState) -> str:
    return f"module/{observed.name}"


def _users(observed: ModuleState) -> str:
    if observed.users:
        return ", ".join(str(user) for user in observed.users)
    return f"something that cannot be seen from here (reference count {observed.refcount})"


def _in_use(observed: ModuleState) -> bool:
    return observed.status is ModuleStatus.LOADED and bool(observed.refcount)


# --- loaded or absent --------------------------------------------------------------------------------------


def _state_diff(want: ModuleWant, observed: ModuleState, lost: Mapping[str, int]) -> tuple[list[Step], list[Row]]:
    if want.state is ModuleWish.LOADED and observed.status is ModuleStatus.ABSENT:
        return [_load(want, observed, lost)], []
    blocked = _state_blocked(want, observed)
    if blocked is not None:
        reason, message = blocked
        return [], [_state_row(want, observed, reason, message)]
    if want.state is ModuleWish.ABSENT and observed.status is ModuleStatus.LOADED:
        row = _state_row(want, observed, None, f"unload {observed.name}")
        settings = ((Setting(observed.name, "state"), str(want.state)),)
        return [Step(UnloadModule(observed.name), settings, (row,), want.policy)], []
    return [], []


def _state_blocked(want: ModuleWant, observed: ModuleState) -> tuple[Reason, str] | None:
    name = observed.name
    if want.state is ModuleWish.LOADED and observed.status is ModuleStatus.MISSING:
        return Reason.MISSING, f"the running kernel does not have {name}: install the package with its modules"
    if want.state is not ModuleWish.ABSENT:
        return None
    if observed.status is ModuleStatus.BUILT_IN:
        return Reason.BUILT_IN, f"{name} is built into the running kernel and cannot be unloaded"
    if _in_use(observed):
        return Reason.IN_USE, f"{name} is in use by {_users(observed)}; it is unloaded when they let go"
    return None


def _state_row(want: ModuleWant, observed: ModuleState, reason: Reason | None, message: str) -> Row:
    wanted = str(want.state)
    return Row(_subject(observed), want.path, wanted, str(observed.status), reason, message, want.policy)


def _load(want: ModuleWant, observed: ModuleState, lost: Mapping[str, int]) -> Step:
    parameters = (*((name, number) for name, number, _ in want.parameters), *lost.items())
    rows = [_state_row(want, observed, None, f"load {observed.name}")]
    rows += [_parameter_row(observed, asked, None, f"load {observed.name} with it") for asked in want.parameters]
    settings = ((Setting(observed.name, "state"), str(want.state)), *_parameter_settings(observed, want.parameters))
    return Step(LoadModule(observed.name, parameters), settings, tuple(rows), want.policy)


# --- parameters --------------------------------------------------------------------------------------------

Asked = tuple[str, int, str]


def _parameter_diff(want: ModuleWant, observed: ModuleState) -> tuple[list[Step], list[Row]]:
    rows: list[Row] = []
    differing: list[Asked] = []
    for asked in want.parameters:
        blocked = _parameter_blocked(want, observed, asked)
        if blocked is not None:
            rows.append(_parameter_row(observed, asked, *blocked))
        elif observed.status is ModuleStatus.LOADED and value(observed, PARAMETER + asked[0]) != asked[1]:
            differing.append(asked)
    return (_reload(want, observed, differing) if differing else []), rows


def _parameter_blocked(want: ModuleWant, observed: ModuleState, asked: Asked) -> tuple[Reason, str] | None:
    name, number, _ = asked
    if want.state is ModuleWish.ABSENT:
        return Reason.UNSUPPORTED, f"{observed.name} is to be absent and has no parameters then"
    if observed.status is ModuleStatus.MISSING:
        return Reason.MISSING, f"the running kernel does not have {observed.name}"
    current = value(observed, PARAMETER + name)
    if observed.status is ModuleStatus.ABSENT or current == number:
        return None
    if current is None:
        known = ", ".join(sorted(observed.parameters)) or "none"
        return Reason.UNSUPPORTED, f"this {observed.name} has no parameter {name} (it has: {known})"
    return _parameter_stuck(observed, name, number)


def _parameter_stuck(observed: ModuleState, name: str, number: int) -> tuple[Reason, str] | None:
    if observed.status is ModuleStatus.BUILT_IN:
        text = f"{observed.name} is built in: only {observed.name}.{name}={number} on the kernel command line sets it"
        return Reason.BUILT_IN, text
    if _in_use(observed):
        return Reason.IN_USE, f"a change needs a reload, and {observed.name} is in use by {_users(observed)}"
    return None


def _parameter_row(observed: ModuleState, asked: Asked, reason: Reason | None, message: str) -> Row:
    name, number, policy = asked
    current = value(observed, PARAMETER + name)
    return Row(_subject(observed), PARAMETER_PATH + name, number, current, reason, message, policy)


def _parameter_settings(observed: ModuleState, asked: Iterable[Asked]) -> Iterator[tuple[Setting, Value]]:
    for name, number, _ in asked:
        yield Setting(observed.name, PARAMETER + name), number


def _reload(want: ModuleWant, observed: ModuleState, differing: list[Asked]) -> list[Step]:
    rows = tuple(_parameter_row(observed, asked, None, f"unload and load {observed.name}") for asked in differing)
    settings = tuple(_parameter_settings(observed, differing))
    changes = (UnloadModule(observed.name), LoadModule(observed.name, _known(want, observed)))
    return [Step(change, settings, rows, differing[0][2]) for change in changes]


def _known(want: ModuleWant, observed: ModuleState) -> tuple[tuple[str, int], ...]:
    """The wanted parameters that the loaded module has; of one that is not loaded nobody knows them."""
    loaded = observed.status is ModuleStatus.LOADED
    return tuple((name, number) for name, number, _ in want.parameters if not loaded or name in observed.parameters)


# --- over a reboot -----------------------------------------------------------------------------------------


def files(want: ModuleWant) -> dict[str, str | None]:
    """Our two files as wanted: path to content, None for a file that must not be there."""
    lines: dict[str, list[str]] = {load_file(want.name): [], rule_file(want.name): []}
    if want.state is ModuleWish.LOADED:
        lines[load_file(want.name)] = [want.name]
    if want.state is ModuleWish.ABSENT:
        lines[rule_file(want.name)] = [f"install {want.name} /bin/false"]
    elif want.parameters:
        options = " ".join(f"{name}={number}" for name, number, _ in want.parameters)
        lines[rule_file(want.name)] = [f"options {want.name} {options}"]
    return {path: "\n".join([MARK, *content, ""]) if content else None for path, content in lines.items()}


def _file_steps(want: ModuleWant, observed: ModuleState) -> tuple[list[Step], list[Row]]:
    if not want.persist or _cannot_persist(want, observed):
        return [], []
    steps: list[Step] = []
    foreign: list[str] = []
    for path, content in files(want).items():
        there = observed.files.get(path)
        if there == content:
            continue
        if there is not None and not is_ours(there):
            foreign.append(path)
        else:
            steps.append(_file_step(want, observed, path, content))
    if foreign:
        text = f"{' and '.join(foreign)} is not ours: it lacks the line {MARK!r}"
        return steps, [_persist_row(want, observed, Reason.FOREIGN, text)]
    return steps, []


def _cannot_persist(want: ModuleWant, observed: ModuleState) -> bool:
    """A built-in module is in every boot of this kernel; one that is missing cannot be loaded by a file."""
    missing = observed.status is ModuleStatus.MISSING
    return observed.status is ModuleStatus.BUILT_IN or (missing and want.state is not ModuleWish.ABSENT)


def _file_step(want: ModuleWant, observed: ModuleState, path: str, content: str | None) -> Step:
    change = RemoveModuleFile(path) if content is None else WriteModuleFile(path, content)
    verb = "remove" if content is None else "replace" if path in observed.files else "write"
    row = _persist_row(want, observed, None, f"{verb} {path}")
    return Step(change, ((Setting(observed.name, "persist"), True),), (row,), row.policy)


def _persist_row(want: ModuleWant, observed: ModuleState, reason: Reason | None, message: str) -> Row:
    policy = want.persist_policy or want.policy
    current = value(observed, "persist") is not None
    return Row(_subject(observed), PERSIST_PATH, True, current, reason, message, policy)


# --- putting back ------------------------------------------------------------------------------------------


@frozen
class _Return:
    """What is to be put back, sorted by what can be done about it."""

    observed: ModuleState
    state: Entry | None
    parameters: tuple[Entry, ...]
    persist: Entry | None
    foreign: tuple[Entry, ...]
    done: tuple[Setting, ...]
    kept: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, entries: Mapping[str, Entry], observed: ModuleState, want: ModuleWant | None) -> _Return:
        loads = _loads(entries.get("state"), observed)
        back = {entry.setting: entry for entry in entries.values() if _differs(entry, observed, want, loads)}
        foreign = {setting: entry for setting, entry in back.items() if _is_foreign(entry, observed, loads)}
        ours = [entry for setting, entry in back.items() if setting not in foreign]
        state = next((entry for entry in ours if entry.setting.key == "state"), None)
        return cls(
            observed,
            state,
            tuple(entry for entry in ours if entry.setting.key.startswith(PARAMETER)),
            next((entry for entry in ours if entry.setting.key == "persist"), None),
            tuple(foreign.values()),
            tuple(entry.setting for entry in entries.values() if entry.setting not in back),
            _known(want, observed) if want else (),
        )

    def steps(self) -> list[Step]:
        return [*self._files(), *self._module()]

    def rows(self) -> list[Row]:
        rows = [
            _return_row(entry, self.observed, Reason.FOREIGN, _foreign_text(entry, self.observed))
            for entry in self.foreign
        ]
        if self._waits():
            text = (
                f"{self.observed.name} is in use by {_users(self.observed)}; the original is put back when they let go"
            )
            rows += [_return_row(entry, self.observed, Reason.IN_USE, text) for entry in self._of_module()]
        return rows

    def forgotten(self) -> list[Setting]:
        return [*self.done, *(entry.setting for entry in self.foreign)]

    def _of_module(self) -> tuple[Entry, ...]:
        return ((self.state,) if self.state else ()) + self.parameters

    def _waits(self) -> bool:
        return bool(self._of_module()) and _in_use(self.observed)

    def _files(self) -> Iterator[Step]:
        if self.persist is None:
            return
        for path in sorted(path for path, content in self.observed.files.items() if is_ours(content)):
            yield _return_step(RemoveModuleFile(path), (self.persist,), self.observed, f"remove {path}")

    def _module(self) -> Iterator[Step]:
        entries = self._of_module()
        if not entries or self._waits():
            return
        name, loaded = self.observed.name, self.observed.status is ModuleStatus.LOADED
        stays_out = self.state is not None and self.state.original == ModuleStatus.ABSENT
        if loaded:
            text = f"unload {name}" if stays_out else f"unload and load {name}"
            yield _return_step(UnloadModule(name), entries, self.observed, text)
        if not stays_out:
            numbers = self.kept + tuple(_number(entry) for entry in self.parameters)
            text = f"unload and load {name}" if loaded else f"load {name}"
            yield _return_step(LoadModule(name, numbers), entries, self.observed, text)


def _loads(state: Entry | None, observed: ModuleState) -> bool:
    """Whether putting the state back loads the module; its parameters then come with it."""
    ours = state is not None and state.is_ours(str(observed.status))
    return ours and observed.status is ModuleStatus.ABSENT and state is not None and state.original == "Loaded"


def _differs(entry: Entry, observed: ModuleState, want: ModuleWant | None, loads: bool) -> bool:
    """Whether there is something to put back on this kernel."""
    current = value(observed, entry.setting.key)
    if entry.setting.key == "persist":
        return bool(observed.files)
    if entry.setting.key.startswith(PARAMETER) and loads:
        return entry.original is not None
    if entry.setting.key.startswith(PARAMETER) and want is not None and want.state is ModuleWish.ABSENT:
        return False
    if observed.status in {ModuleStatus.BUILT_IN, ModuleStatus.MISSING} or current is None:
        return False
    return entry.original is not None and current != entry.original


def _is_foreign(entry: Entry, observed: ModuleState, loads: bool) -> bool:
    """Whether it is neither what we set nor the original; for files, whether those that are there lack our mark."""
    if entry.setting.key.startswith(PARAMETER) and loads:
        return False
    return not entry.is_ours(value(observed, entry.setting.key))


def _number(entry: Entry) -> tuple[str, int]:
    return entry.setting.key.removeprefix(PARAMETER), int(entry.original or 0)


def _path(key: str) -> str:
    if key.startswith(PARAMETER):
        return PARAMETER_PATH + key.removeprefix(PARAMETER)
    return PERSIST_PATH if key == "persist" else STATE_PATH


def _foreign_text(entry: Entry, observed: ModuleState) -> str:
    if entry.setting.key == "persist":
        return f"{' and '.join(sorted(observed.files))} lost our mark {MARK!r}: left as it is"
    return f"neither ours ({entry.wanted}) nor the original ({entry.original}): left as it is"


def _return_row(entry: Entry, observed: ModuleState, reason: Reason | None, message: str) -> Row:
    key = entry.setting.key
    current = value(observed, key)
    return Row(_subject(observed), _path(key), entry.original, current, reason, message, entry.policy)


def _return_step(
    change: UnloadModule | LoadModule | RemoveModuleFile,
    entries: tuple[Entry, ...],
    observed: ModuleState,
    text: str,
) -> Step:
    settings = tuple((entry.setting, entry.original) for entry in entries)
    rows = tuple(_return_row(entry, observed, None, text) for entry in entries)
    return Step(change, settings, rows, entries[0].policy, restores=True)
