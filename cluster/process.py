"""Which process of which machine this is, such that another process can tell later whether it still runs."""

import os
import socket
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def own_process() -> dict[str, Any]:
    """Return what names this process and no other."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def has_ended(process: dict[str, Any]) -> bool:
    """Return whether a process that `own_process` named is known to run no more; False for one of another machine."""
    if process.get("machine") != _machine():
        return False
    started = _started(process["pid"])
    if started is not None or PROC.is_dir():
        return started != process["started"]  # else its number is another process's by now
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _machine() -> str:
    """Return a name for what numbers processes: host, boot, and on Linux the namespace, as containers count for themselves."""
    boot = PROC / "sys/kernel/random/boot_id"
    namespace = PROC / "self/ns/pid"
    parts = [socket.gethostname(), boot.read_text().strip() if boot.is_file() else ""]
    return " ".join([*parts, os.readlink(namespace) if namespace.exists() else ""])


def _started(pid: int) -> str | None:
    """Return when process `pid` was started, in the kernel's ticks; None where it has ended or nothing tells."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else fields[18]
