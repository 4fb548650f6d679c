"""The system calls of namespaces, mounts and capabilities that Python 3.11 lacks, by ctypes.

Standard library only (netd uses it). Every call raises ``OSError`` with the kernel's errno and the call's name.

``setns`` and ``unshare`` move the calling *thread*. ``CLONE_NEWUSER`` and ``CLONE_NEWPID`` need a process with one
thread. Sources: man 2 unshare, setns, mount, mount_setattr, prctl, capset; man 7 capabilities.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterable, Iterator

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

CAPABILITIES = tuple(
    """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()  # noqa: SIM905 - a list of forty strings is forty lines
)
"""Linux' names without CAP_; the place is the number (include/uapi/linux/capability.h)."""

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1
_SYS_MOUNT_SETATTR = 442
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")
    return result


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (man 2 unshare)."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread into the namespace behind ``fd``; ``kind`` is a CLONE_NEW* or 0 for any."""
    _check(_libc.setns(fd, kind), f"setns({fd}, {kind:#x})")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount({source or fstype} on {target})",
    )


def make_readonly(path: str) -> None:
    """Make the mount at ``path`` and all below it read-only (man 2 mount_setattr, Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            path.encode(),
            ctypes.c_uint(_AT_RECURSIVE),
            ctypes.byref(attributes),
            ctypes.c_size_t(32),
        ),
        f"mount_setattr({path}, read-only)",
    )


def sethostname(name: str) -> None:
    raw = name.encode()[:64]
    _check(_libc.sethostname(raw, len(raw)), "sethostname")


def restrict_capabilities(names: Iterable[str]) -> None:
    """Leave the calling process exactly these capabilities, also across ``execve``.

    The bounding set goes as well: as uid 0 ambient capabilities alone would execute with nearly all of them.
    """
    wanted = {CAPABILITIES.index(name) for name in names}
    for number in range(len(CAPABILITIES)):
        if number not in wanted and _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), f"drop CAP_{CAPABILITIES[number]}")
    low = sum(1 << number for number in wanted if number < 32)
    high = sum(1 << (number - 32) for number in wanted if number >= 32)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")
    for number in wanted:
        _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0), f"raise CAP_{CAPABILITIES[number]}")


def effective_capabilities() -> frozenset[str]:
    """What the calling process may do, by Linux' names without CAP_."""
    with open("/proc/self/status", encoding="ascii") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)


def own_netns() -> int:
    """A descriptor of the calling thread's netns."""
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def in_netns(netns: int) -> Iterator[None]:
    """Stand in another netns for a while. Sockets opened here stay there; the calling thread needs SYS_ADMIN."""
    home = own_netns()
    try:
        setns(netns, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def open_socket_in(netns: int, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in ``netns`` and is driven from here (13 us; the thread comes back)."""
    with in_netns(netns):
        return socket.socket(family, kind, protocol)
