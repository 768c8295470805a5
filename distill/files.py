"""Files that are replaced whole or not at all, and what of the machine a process may use."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError

from distill.errors import DistillError, first_line, lacking_memory, shortened

_ON_WINDOWS = os.name == "nt"
try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

PROJECT = Path(__file__).resolve().parent.parent  # the clone that this package runs from; else where it is installed


@contextmanager
def replace_file(path: str | Path, lasting: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on failure it is removed.

    `lasting` waits until the content has reached the disk, so that not even a power cut leaves half a file.
    Raises DistillError when it cannot be written: the disk is full, or the folder is gone or not writable.
    """
    path = Path(path)
    if not path.name:
        raise DistillError(f"{path} is a folder; give a file in it")
    temporary = None
    try:
        temporary = path.with_name(f".{path.name[:40]}.{uuid4().hex}.part")  # no longer a name than the disk allows
        temporary.touch(exist_ok=False)
        yield temporary
        if lasting:
            _wait_for_disk(temporary)
        _put(temporary, path)
        if lasting:
            _wait_for_folder(path.parent)
    # A full disk is an OSError for Python and Pillow, and something else for PyTorch and safetensors.
    except (OSError, RuntimeError, SafetensorError) as error:
        if lacking_memory(error) or "DataLoader worker" in str(error):  # while what is written was made
            raise
        reason = (error.strerror or first_line(error)) if isinstance(error, OSError) else "the disk took no more"
        raise DistillError(
            f"{path} could not be written ({reason}); its earlier content, if any, is kept; make room, or choose "
            f"a folder that can be written to"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> None:
    """Rename; on Windows again for some seconds, where another program has the old file open for a moment."""
    for wait in (0.01, 0.05, 0.2, 0.5, 1.0, 2.0) if _ON_WINDOWS else ():
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    temporary.replace(path)


def _wait_for_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _wait_for_folder(folder: Path) -> None:
    """Until the new name has reached the disk too, where the system can tell."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some disks of networks cannot
        pass
    finally:
        os.close(handle)


def is_whole(path: Path) -> bool:
    """Whether a file is there and holds something: a power cut can leave an empty one."""
    return path.exists() and path.stat().st_size > 0


def remove_parts(folder: Path, name: str = "") -> None:
    """Delete what a process that was killed while writing may have left in a folder, of files that begin with `name`.

    Only for one who knows that no other process is writing them: see `held`.
    """
    for part in folder.glob(f".{name}*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def held(path: Path, patience: float = 10.0) -> Iterator[bool]:
    """Hold a file, made where it is missing, as the sign that this process alone writes into its folder.

    It must be one that is never replaced.

    Gives whether it is held: not every system and disk knows of such locks, and then any process goes on.
    The system lets go of it when the process ends, in whatever way. Raises DistillError when it cannot be made, and
    when another process holds it for more than `patience` seconds; less may be what is left of one that was killed.
    """
    if fcntl is None:
        yield False
        return
    try:
        file = path.open("ab")
    except OSError as error:
        raise DistillError(
            f"{path} cannot be made ({error.strerror}); choose a folder that can be written to"
        ) from None
    with file:
        end, locked = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise DistillError(
                        f"another process is writing into {path.parent}; wait until it has ended, or choose another "
                        f"folder"
                    ) from None
                time.sleep(0.1)
            except OSError:  # some disks of networks know no locks
                break
        yield locked


def make_folder(path: Path) -> None:
    """A folder, and those it lies in. Raises DistillError when there is a file, or it may not be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistillError(
            f"the folder {path} cannot be made ({error.strerror}); choose one that can be written to"
        ) from None


def free_memory() -> int | None:
    """Bytes of memory that programs can still use, caches included; None where the system does not say."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
        free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), free)
        return min(free, _free_in_group(free))
    except (ValueError, OSError, AttributeError):  # not every system tells
        return None


_GROUP = Path("/sys/fs/cgroup")  # of a container, as it sees its own


def _free_in_group(free: int) -> int:
    """What a container's limit leaves; `free` where there is none. Its cached files count as free."""
    try:
        limit, used = ((_GROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit == "max":
            return free
        told = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - int(used) + int(told.get("inactive_file", 0)))
    except (OSError, ValueError):
        return free


def usable_cores() -> int:
    """Cores that this process may use: by its affinity and, in a container, by its quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        cores = os.cpu_count() or 1
    try:
        quota, period = (_GROUP / "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def write_text(path: str | Path, text: str) -> None:
    """Replace the file `path` by `text`, in UTF-8."""
    with replace_file(path, lasting=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


# A number that a run can have: one of float32 at most, where a damaged file may hold any.
Number = Annotated[float, Field(gt=-3.5e38, lt=3.5e38)]

_ANEW = "restore it, or run again into another folder"


def read_json(path: Path) -> Any:
    return _parsed(_content(path), f"{path}")


def read_json_lines(path: Path) -> list[Any]:
    """One value per line."""
    return [_parsed(line, f"{path}, line {number},") for number, line in enumerate(_content(path).splitlines(), 1)]


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DistillError(f"{path} cannot be read as JSON ({first_line(error)}); {_ANEW}") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DistillError(f"{where} cannot be read as JSON ({first_line(error)}); {_ANEW}") from None


def checked(value: Any, kind: Any, path: Path, what: str) -> Any:
    """`value` itself, where it is what the type `kind` says, as a rule a TypedDict; DistillError for all else.

    Keys that the type does not name may hold anything.
    """
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = next((str(step) for step in reversed(fault["loc"]) if isinstance(step, str)), None)
        if name is None:
            wrong = f"it holds {shortened(fault['input'])} instead of a dict"
        else:
            wrong = f"{name} is {'missing' if fault['type'] == 'missing' else shortened(fault['input'])}"
        raise DistillError(f"{path} is not {what}: {wrong}; {_ANEW}") from None
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
