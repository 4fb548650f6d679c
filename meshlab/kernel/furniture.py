"""Mounts of a lab's mount namespaces: the host's tree read-only, scratch folders, files of /etc.

netd calls these, standing in the mount namespace that is meant. Standard library only, as for netd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from meshlab.kernel import namespaces as ns
from meshlab.kernel.netd_requests import MakeMntns

_TMPFS_FLAGS = ns.MS_NOSUID | ns.MS_NODEV
_GLOBAL = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
"""These files belong to the whole machine, and uid 0 may write there without any capability.

Container runtimes make the same ones read-only.
"""
_BOUND = "size=64m,nr_inodes=65536"
"""Bounds of every tmpfs of a lab: what programs write there is the machine's memory, and so is every empty file."""
_SCRATCH = ("/tmp", "/var/tmp", "/run", "/dev/shm")  # noqa: S108 - mounted over, never used on the host


def build_base(binds: list[str]) -> int:
    """The host's tree read-only, with /proc, /sys and every scratch folder the lab's own; a writable /proc/sys."""
    ns.mount("", "/", "", ns.MS_REC | ns.MS_PRIVATE)
    ns.make_readonly("/")
    ns.mount("proc", "/proc", "proc", _TMPFS_FLAGS | ns.MS_NOEXEC)
    sysctls = os.open("/proc/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for path in filter(os.path.exists, _GLOBAL):
        ns.mount(path, path, "", ns.MS_BIND | ns.MS_REC)
        ns.make_readonly(path)
    mount_sysfs()
    kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in binds if os.path.exists(path)]
    _mount_scratch()
    for path, fd in kept:
        _bind(fd, path)
        os.close(fd)
    return sysctls


def mount_sysfs() -> None:
    """A fresh sysfs shows the lab's links; where the host's is masked none is allowed, and that one stays."""
    with contextlib.suppress(OSError):
        ns.mount("sysfs", "/sys", "sysfs", _TMPFS_FLAGS | ns.MS_NOEXEC | ns.MS_RDONLY)


def _mount_scratch() -> None:
    for folder in _SCRATCH:
        if os.path.isdir(folder) and not os.path.islink(folder):
            ns.mount("tmpfs", folder, "tmpfs", _TMPFS_FLAGS, f"mode={'755' if folder == '/run' else '1777'},{_BOUND}")


def _bind(fd: int, path: str) -> None:
    """Show again, read-only, what a scratch mount would hide."""
    if os.path.exists(path):
        return  # it lies outside every scratch folder, or a bind above it shows it
    if os.path.isdir(f"/proc/self/fd/{fd}"):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").close()
    ns.mount(f"/proc/self/fd/{fd}", path, "", ns.MS_BIND | ns.MS_REC)


def furnish(request: MakeMntns) -> None:
    """The mount namespace of one pod or node: scratch folders of its own and its /etc files."""
    kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in request.binds if os.path.exists(path)]
    if request.hostname:
        ns.sethostname(request.hostname)
    _mount_scratch()
    for path, fd in kept:
        _bind(fd, path)
        os.close(fd)
    for path, text in request.files.items():
        _place_file(path, text)
    for folder in request.folders:
        os.makedirs(folder, exist_ok=True)
    for folder in request.empty_dirs:
        _make_mount_point(folder)
        ns.mount("tmpfs", folder, "tmpfs", _TMPFS_FLAGS, f"mode=1777,{_BOUND}")


def _make_mount_point(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        text = f"no {folder} to mount an emptyDir on, and the host's tree is read-only: {', '.join(_SCRATCH)} are not"
        raise OSError(error.errno, text) from error


def _place_file(path: str, text: str) -> None:
    """Bind a file over ``path``, or over what it links to (resolv.conf is often a link into /run)."""
    target = os.path.realpath(path)
    if target.startswith(tuple(f"{folder}/" for folder in _SCRATCH)):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w") as file:
            file.write(text)
        return
    source = f"/run/.{os.path.basename(target)}"
    with open(source, "w") as file:
        file.write(text)
    ns.mount(source, target, "", ns.MS_BIND)
    os.unlink(source)


def rewrite(path: str, data: bytes) -> None:
    """Replace what a file says. A program of the lab may have put something else there: nothing but a file is taken."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"{path} is no file")
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
