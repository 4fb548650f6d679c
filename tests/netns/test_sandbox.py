"""netd from its owner's side: namespaces, sockets, programs, capabilities, exits, and an end that leaves nothing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from leftovers import Belongings, capabilities, children, command, host, inhabitants, pid_inside, state

from meshlab.errors import KernelRefusedError, LabLostError, StillRunsError
from meshlab.kernel import execute
from meshlab.kernel.messages import Done, Op
from meshlab.kernel.namespaces import CAPABILITIES
from meshlab.kernel.netlink import RouteSocket
from meshlab.kernel.sandbox import Furniture, Mntns, Netns, Sandbox
from meshlab.plan.changes import End, LinkUp, Veth
from meshlab.plan.netns import netns_key

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
ROOTLESS = [False, True] if os.geteuid() == 0 else [True]
"""Root can have a lab of either kind."""


class Room:
    """A sandbox with one netns and one mount namespace to run things in."""

    def __init__(self, rootless: bool | None = None) -> None:
        self.sandbox = Sandbox.start([str(Path.cwd()), sys.prefix, sys.base_prefix], rootless)
        self.netns: Netns = self.sandbox.netns(["room"])[0]
        self.mntns: Mntns = self.sandbox.mntns(Furniture(hostname="room"))
        self.lab = f"pid:[{os.fstat(self.sandbox.pid_fd).st_ino}]"

    def run(self, *argv: str, capabilities: tuple[str, ...] = (), timeout_s: float = 10.0) -> execute.Completed:
        return execute.run(
            self.sandbox,
            argv,
            netns=self.netns,
            mntns=self.mntns,
            capabilities=capabilities,
            env=ENV,
            timeout_s=timeout_s,
        )

    def start(self, *argv: str, capabilities: tuple[str, ...] = ()) -> int:
        """A program that nobody waits for; its pid in the lab."""
        with open(os.devnull, "r+") as null:
            pid, pidfd = self.sandbox.spawn(
                argv,
                netns=self.netns,
                mntns=self.mntns,
                capabilities=capabilities,
                stdio=(null.fileno(), null.fileno(), null.fileno()),
                env=ENV,
            )
        os.close(pidfd)
        return pid

    def on_host(self, pid: int) -> int:
        return next(outside for outside in inhabitants([self.lab]) if pid_inside(outside) == pid)


@pytest.fixture
def room() -> Iterator[Room]:
    opened = Room()
    try:
        yield opened
    finally:
        opened.sandbox.close()


# --- what it gives ---------------------------------------------------------------------------------------------------


def test_every_netns_is_one_of_its_own(room: Room) -> None:
    made = room.sandbox.netns([f"n{number}" for number in range(300)])
    assert [netns.name for netns in made] == [f"n{number}" for number in range(300)]
    inodes = {os.fstat(netns.fd).st_ino for netns in made}
    assert len(inodes) == 300
    assert os.stat("/proc/self/ns/net").st_ino not in inodes


def test_sockets_come_in_order_in_any_number_and_live_in_their_netns(room: Room) -> None:
    other = room.sandbox.netns(["other"])[0]
    room.sandbox.sysctl([(room.netns, "net/ipv4/ip_local_port_range", "2000 2000"), (other, *_RANGE)])
    wanted = [(room.netns if place % 2 else other, socket.AF_INET, socket.SOCK_DGRAM, 0) for place in range(600)]
    sockets = room.sandbox.sockets(wanted)
    try:
        assert len(sockets) == 600
        for sock in sockets[:2]:
            sock.bind(("0.0.0.0", 0))
        assert [sock.getsockname()[1] for sock in sockets[:2]] == [3000, 2000]
    finally:
        for sock in sockets:
            sock.close()


_RANGE = ("net/ipv4/ip_local_port_range", "3000 3000")


def test_netd_keeps_none_of_the_sockets_that_it_handed_out(room: Room) -> None:
    netd = f"/proc/{room.on_host(1)}/fd"
    assert room.run("true").status == 0  # after a round trip it has let go of what it had sent before
    before = len(os.listdir(netd))
    for sock in room.sandbox.sockets([(room.netns, socket.AF_INET, socket.SOCK_STREAM, 0)] * 300):
        sock.close()
    assert room.run("true").status == 0
    assert len(os.listdir(netd)) == before


def test_a_refusal_names_operation_netns_and_errno(room: Room) -> None:
    with pytest.raises(KernelRefusedError, match=r"start no-such-program in netns 'room': No such file.* \[2\]"):
        room.run("no-such-program")


def test_the_hosts_tree_is_read_only_and_scratch_folders_are_the_labs(room: Room) -> None:
    assert room.run("touch", "/etc/mark").status != 0
    assert room.run("touch", "/tmp/mark", "/run/mark", "/dev/shm/mark").status == 0  # noqa: S108
    assert not any(Path(folder, "mark").exists() for folder in ("/tmp", "/run", "/dev/shm"))  # noqa: S108


# --- programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rootless", ROOTLESS, ids=["rootless" if rootless else "as-root" for rootless in ROOTLESS])
@pytest.mark.parametrize("names", [(), ("NET_RAW",), ("NET_ADMIN", "SYS_ADMIN")], ids=",".join)
def test_a_program_has_the_capabilities_that_were_said_and_no_more(rootless: bool, names: tuple[str, ...]) -> None:
    room = Room(rootless)
    try:
        pid = room.start("sleep", "1000", capabilities=names)
        bits = sum(1 << CAPABILITIES.index(name) for name in names)
        assert capabilities(room.on_host(pid)) == {"CapEff": bits, "CapPrm": bits, "CapBnd": bits}
    finally:
        room.sandbox.close()


def test_an_exit_is_told_with_its_status_or_signal(room: Room) -> None:
    assert room.sandbox.wait_exit(room.start("sh", "-c", "exit 7"), 5) == 7
    pid = room.start("sleep", "1000")
    room.sandbox.kill(pid, signal.SIGTERM)
    assert room.sandbox.wait_exit(pid, 5) == -signal.SIGTERM
    with pytest.raises(TimeoutError):
        room.sandbox.wait_exit(room.start("sleep", "1000"), 0)


def test_what_had_ended_when_asked_is_known_afterwards(room: Room) -> None:
    pid = room.start("sleep", "1000")
    pidfd = os.pidfd_open(room.on_host(pid))
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 5)[0]  # seen from outside; the lab was not asked
    finally:
        os.close(pidfd)
    room.sandbox.poll()
    assert room.sandbox.exits[pid] == -signal.SIGKILL


def test_orphans_are_reaped(room: Room) -> None:
    """A zombie would stay in the lab as long as it lives."""
    done = room.run("sh", "-c", "sh -c 'sleep 1000 & echo $!'")
    orphan = int(done.stdout)
    room.sandbox.kill(orphan)
    room.sandbox.wait_exit(orphan, 5)
    assert sorted(map(pid_inside, inhabitants([room.lab]))) == [1]


def test_a_thread_that_waits_for_a_program_keeps_no_other_from_the_lab(room: Room) -> None:
    """The wait ends with the program, and the program with what the other thread asks for."""
    pid = room.start("sleep", "1000")
    ended: SimpleQueue[int] = SimpleQueue()
    waiting = threading.Thread(target=lambda: ended.put(room.sandbox.wait_exit(pid, 60)))
    waiting.start()
    for sock in room.sandbox.sockets([(room.netns, socket.AF_INET, socket.SOCK_STREAM, 0)] * 300):
        sock.close()
    assert ended.empty()
    room.sandbox.kill(pid)
    assert ended.get(timeout=10) == -signal.SIGKILL
    waiting.join()


MALFORMED: list[dict[str, Any]] = [
    {"op": "dance"},
    {"op": "kill"},
    {"op": "kill", "pid": "one", "signal": 9},
    {"op": "sockets", "sockets": [[99, 2, 1, 0]]},
    {"op": "spawn", "argv": []},
    {"op": "mntns", "netns": 0},
    {"op": "forget", "netns": [99], "mntns": []},
    {"op": "forget", "netns": [-1], "mntns": []},
    {"op": "forget", "netns": [0], "mntns": [99]},
    {"op": "forget", "netns": 3},
    {"op": "write_files", "mntns": 0, "files": {"/etc/hosts": ""}},
    {"op": "write_files", "mntns": 1, "files": {"/etc/hosts": 7}},
    {"op": "write_files", "mntns": 1, "files": {"/etc/no-such-file": ""}},
    {"op": "write_files", "mntns": 1, "files": {"/run": ""}},
    {"op": "end_in", "mntns": 99, "signal": 9},
    {"op": "end_in", "mntns": 1, "signal": 0},
    {"op": "running_in", "mntns": 99},
]


class _Raw(dict[str, Any]):
    """A request that no class of ours would make."""

    op = Op[Done]("raw")

    def _asdict(self) -> dict[str, Any]:
        return self


@pytest.mark.parametrize("request_", MALFORMED, ids=str)
def test_a_request_that_makes_no_sense_is_refused_and_netd_lives(room: Room, request_: dict[str, Any]) -> None:
    netd = f"/proc/{room.on_host(1)}/fd"
    assert room.run("true").status == 0  # after a round trip it has let go of what it had sent before
    before = len(os.listdir(netd))
    with pytest.raises(KernelRefusedError):
        room.sandbox._ask(_Raw(request_))
    assert room.run("true").status == 0
    assert len(os.listdir(netd)) == before


def test_every_scratch_folder_has_a_size(room: Room) -> None:
    shown = room.run("cat", "/proc/mounts").stdout.decode().splitlines()
    mounted = {line.split()[1]: line for line in shown if line.split()[2] == "tmpfs"}
    for folder in ("/tmp", "/var/tmp", "/run", "/dev/shm"):  # noqa: S108
        if folder in mounted:
            assert "size=65536k" in mounted[folder], mounted[folder]
            assert "nr_inodes=65536" in mounted[folder], mounted[folder]
    assert "/run" in mounted


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["forgotten", "kept"])
def test_a_netns_that_is_forgotten_ends_with_the_links_in_it(room: Room, how: str) -> None:
    """Its end is seen at the other end of a link, which goes with it."""
    gone = room.sandbox.netns(["gone"])[0]
    with contextlib.ExitStack() as stack:
        routes = [
            stack.enter_context(sock)
            for sock in room.sandbox.sockets(
                [(one, socket.AF_NETLINK, socket.SOCK_RAW, 0) for one in (gone, room.netns)]
            )
        ]
        here, there = End("here", 11), End("there", 12)
        link = Veth(end=here, peer=there, peer_netns=netns_key("gone"), mac="02:6d:00:00:00:01")
        RouteSocket(routes[1], "room").apply([link], {"gone": gone.fd})
        routes[0].close()
        if how == "forgotten":
            room.sandbox.forget([gone])
        assert _eventually(lambda: not _has_link(routes[1], here), 10.0 if how == "forgotten" else 0.2) is (
            how == "forgotten"
        )


def _has_link(sock: socket.socket, end: End) -> bool:
    try:
        RouteSocket(sock, "room").apply([LinkUp(end)])
    except KernelRefusedError:
        return False
    return True


def test_the_number_of_a_forgotten_namespace_is_never_given_again_and_using_it_is_an_error(room: Room) -> None:
    netns, mntns = room.sandbox.netns(["gone"])[0], room.sandbox.mntns(Furniture())
    descriptors = len(os.listdir("/proc/self/fd"))
    room.sandbox.forget([netns], [mntns])
    assert len(os.listdir("/proc/self/fd")) == descriptors - 3
    numbers = {one.number for one in room.sandbox.netns(["new", "newer"])} | {room.sandbox.mntns(Furniture()).number}
    assert not numbers & {netns.number, mntns.number}
    with pytest.raises(KernelRefusedError):
        room.sandbox.sockets([(netns, socket.AF_INET, socket.SOCK_STREAM, 0)])
    with pytest.raises(KernelRefusedError):
        room.sandbox.end_in(mntns)
    with pytest.raises(KernelRefusedError):
        room.sandbox.forget([netns])


@pytest.mark.parametrize("path", ["/etc/hosts", "/run/names"])
@pytest.mark.parametrize("text", ["", "x", "10.0.0.1 longer than before\n" * 2000], ids=["nothing", "short", "long"])
def test_a_file_is_rewritten_in_place_for_those_who_have_it_open_too(room: Room, path: str, text: str) -> None:
    room.mntns = room.sandbox.mntns(Furniture(files={path: "10.0.0.1 a\n"}))
    other = room.sandbox.mntns(Furniture(files={path: "other"}))
    inode = room.run("stat", "-c", "%i", path).stdout
    room.sandbox.write_files(room.mntns, {path: text})
    assert room.run("cat", path).stdout.decode() == text
    assert room.run("stat", "-c", "%i", path).stdout == inode
    room.mntns = other
    assert room.run("cat", path).stdout == b"other"


def test_what_a_pod_put_in_the_place_of_a_file_is_not_written_to_and_nobody_waits(room: Room) -> None:
    room.mntns = room.sandbox.mntns(Furniture(files={"/run/names": "a"}))
    room.run("sh", "-c", "rm /run/names; mkfifo /run/names")
    with pytest.raises(KernelRefusedError, match="write /run/names"):
        room.sandbox.write_files(room.mntns, {"/run/names": "b"})
    assert room.run("true").status == 0


STUBBORN = "trap '' TERM; sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &) ; echo ready; while :; do wait; done"


def test_every_process_of_a_mount_namespace_ends_and_no_other(room: Room) -> None:
    other = room.start("sleep", "1000")
    home, room.mntns = room.mntns, room.sandbox.mntns(Furniture())
    parent = room.start("sh", "-c", STUBBORN)
    unshared = room.start("unshare", "--mount", "sleep", "1000", capabilities=("SYS_ADMIN",))
    asleep = ["sleep 1000 "] * 5
    assert _eventually(lambda: sorted(map(command, inhabitants([room.lab])))[-5:] == asleep)
    signalled = room.sandbox.end_in(room.mntns)
    assert {parent, unshared} < set(signalled)
    assert len(signalled) == 5
    room.sandbox.wait_ended_in(room.mntns, 10)
    assert sorted(map(pid_inside, inhabitants([room.lab]))) == [1, other]
    assert room.sandbox.end_in(room.mntns) == []
    room.sandbox.wait_ended_in(room.mntns, 0)
    assert room.sandbox.end_in(home) == [other]


def test_waiting_for_processes_that_do_not_end_says_which(room: Room) -> None:
    pid = room.start("sh", "-c", "trap '' TERM; while :; do sleep 1000; done")
    room.sandbox.wait_ended_in(room.sandbox.mntns(Furniture()), 0)
    with pytest.raises(StillRunsError, match=f"processes {pid}.* still run after 0.05 s"):
        room.sandbox.wait_ended_in(room.mntns, 0.05)


def test_a_process_whose_first_thread_has_ended_is_found_and_ends(room: Room) -> None:
    script = "import threading, ctypes; threading.Thread(target=threading.Event().wait).start(); "
    pid = room.start("/usr/bin/python3", "-c", script + "ctypes.CDLL(None).pthread_exit(None)")
    assert _eventually(lambda: sorted(map(pid_inside, inhabitants([room.lab]))) == [1]), "it hides from a first look"
    assert room.sandbox.end_in(room.mntns) == [pid]
    room.sandbox.wait_ended_in(room.mntns, 10)
    assert room.sandbox.wait_exit(pid, 10) == -signal.SIGKILL


@pytest.mark.parametrize("rootless", ROOTLESS, ids=["rootless" if rootless else "as-root" for rootless in ROOTLESS])
def test_closing_leaves_nothing(rootless: bool) -> None:
    before = host()
    room = Room(rootless)
    room.run("sh", "-c", "trap '' TERM HUP; sleep 1000 & sleep 1000 &")
    with Belongings.inside(room.lab) as theirs:
        assert len(theirs.pids) == 3
        assert f"net:[{os.fstat(room.netns.fd).st_ino}]" in theirs.links("net")
        room.sandbox.close()
        room.sandbox.close()  # once more does no harm
        assert theirs.left(0) == []
    assert host() == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_netd_that_is_killed_or_stuck_still_leaves_nothing(how: signal.Signals) -> None:
    room = Room()
    room.start("sleep", "1000")
    netd = room.on_host(1)
    with Belongings.inside(room.lab) as theirs:
        os.kill(netd, how)
        if how is signal.SIGKILL:
            with pytest.raises(LabLostError, match="netd, PID 1 of the lab, is gone"):
                room.sandbox.netns(["more"])
            with pytest.raises(LabLostError, match="netd"):
                room.run("true")
        room.sandbox.close()
        assert theirs.left(0) == []


def test_after_the_end_every_verb_says_that_the_lab_was_closed() -> None:
    room = Room()
    room.sandbox.close()
    for verb in (room.sandbox.poll, lambda: room.sandbox.kill(1), lambda: room.run("true")):
        with pytest.raises(LabLostError, match="the lab was closed"):
            verb()


@pytest.mark.parametrize("step", ["after unshare", "before the first fork"])
def test_a_hook_that_raises_ends_the_lab_that_was_being_made(step: str) -> None:
    def interrupt(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    with Belongings() as theirs:
        theirs_before = set(_children())

        def interrupt_and_look(name: str) -> None:
            theirs.add(set(_children()) - theirs_before)
            interrupt(name)

        with pytest.raises(KeyboardInterrupt):
            Sandbox.start(step=interrupt_and_look)
        assert theirs.links("net")
        assert theirs.left(5) == []


def _children() -> list[int]:
    me = str(os.getpid())
    statuses = ((int(name), Path(f"/proc/{name}/stat")) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid, stat in statuses if stat.exists() and stat.read_text().rpartition(")")[2].split()[1] == me]


OWNER_WITH_A_CHILD = """
import os, signal
from meshlab.kernel.sandbox import Sandbox
sandbox = Sandbox.start()
child = os.fork()
if child:
    print(os.fstat(sandbox.pid_fd).st_ino, child, flush=True)
signal.pause()
"""


def test_a_lab_ends_with_its_owner_though_a_child_of_the_owner_keeps_every_descriptor() -> None:
    """So a fork of the owner's (multiprocessing) cannot keep the end of file from netd."""
    argv = [sys.executable, "-c", OWNER_WITH_A_CHILD]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=_env()) as owner:
        assert owner.stdout is not None
        inode, child = owner.stdout.readline().split()
        lab = f"pid:[{inode}]"
        netd = os.pidfd_open(inhabitants([lab])[0])
        try:
            owner.kill()
            assert select.select([netd], [], [], 5)[0]
            assert inhabitants([lab]) == []
        finally:
            os.close(netd)
            os.kill(int(child), signal.SIGKILL)


OWNER_THAT_DOES_NOT_READ = """
import os, signal
from meshlab.kernel import conversation
from meshlab.kernel.netlink import RouteSocket
from meshlab.kernel.sandbox import Furniture, Sandbox
sandbox = Sandbox.start()
netns, mntns = sandbox.netns(["one"])[0], sandbox.mntns(Furniture())
child = os.fork()
if child:
    orphans = "i=0; while [ $i -lt 600 ]; do (true &); i=$((i+1)); done; exec sleep 4321"
    null = os.open(os.devnull, os.O_RDWR)
    sandbox.spawn(["/bin/sh", "-c", orphans], netns=netns, mntns=mntns, capabilities=[], stdio=(null,) * 3,
                  env={"PATH": "/usr/bin:/bin"})
    print(os.fstat(sandbox.pid_fd).st_ino, child, flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
signal.alarm(120)
signal.pause()
"""


def test_a_lab_ends_with_an_owner_that_did_not_read_and_until_then_its_orphans_are_reaped() -> None:
    """More exits than the channel holds must not make netd wait: it would look neither at its owner nor at orphans."""
    argv = [sys.executable, "-c", OWNER_THAT_DOES_NOT_READ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=_env()) as owner:
        assert owner.stdout is not None
        inode, child = owner.stdout.readline().split()
        lab = f"pid:[{inode}]"
        netd = os.pidfd_open(inhabitants([lab])[0])
        try:
            assert _eventually(lambda: any("sleep 4321" in command(pid) for pid in inhabitants([lab])))
            assert _eventually(lambda: not any(state(pid) == "Z" for pid in children(inhabitants([lab])[0])))
            owner.kill()
            assert select.select([netd], [], [], 5)[0]
            assert inhabitants([lab]) == []
        finally:
            os.close(netd)
            owner.kill()
            os.kill(int(child), signal.SIGKILL)


def _eventually(seen: Callable[[], bool], within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if seen():
            return True
        select.select([], [], [], 0.02)
    return False


KILLED_WHILE_NETD_STARTS = """
import os, signal
from meshlab.kernel import sandbox
from meshlab.kernel.channel import Channel
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if {step!r}:
    sandbox.Sandbox.start(step=lambda name: die() if name == {step!r} else None)
sandbox._greet = die
sandbox.Sandbox.start()
"""


@pytest.mark.parametrize("step", ["", "after unshare", "before the first fork"])
def test_an_owner_that_is_killed_while_netd_starts_leaves_no_word_and_no_netd(step: str) -> None:
    argv = [sys.executable, "-c", KILLED_WHILE_NETD_STARTS.format(step=step)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_env()) as owner:
        output, _ = owner.communicate(timeout=30)  # until netd, which has the same standard error, has ended as well
    assert owner.returncode == -signal.SIGKILL
    assert output == ""


WHERE_INIT_REAPS_NOBODY = """
import ctypes, os
from meshlab.kernel.sandbox import Sandbox
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us, as to the init of a container
Sandbox.start().close()
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
"""


def test_closing_leaves_no_zombie_where_the_containers_init_reaps_nobody() -> None:
    assert _run(WHERE_INIT_REAPS_NOBODY) == "no child\n"


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _run(script: str) -> str:
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, env=_env(), check=True, timeout=30)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("most", [12, 20, 32])
def test_too_few_descriptors_are_told_with_the_command_that_mends_it(most: int) -> None:
    message = _run(TOO_FEW_DESCRIPTORS.format(most=most))
    assert message.startswith(f"a lab needs more than the {most} open files that are allowed here: `ulimit -Hn 1024`")


TOO_FEW_DESCRIPTORS = """
import resource
from meshlab import open_lab
from meshlab.errors import HostNotReadyError
resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))
try:
    with open_lab("quickstart"):
        pass
except HostNotReadyError as error:
    print(error)
"""


# --- a machine that cannot hold a lab --------------------------------------------------------------------------------

NO_USER_NAMESPACES = """
import os, sys
from meshlab.errors import HostNotReadyError
from meshlab.kernel import namespaces as ns
from meshlab.kernel.sandbox import Sandbox
uid, gid = os.geteuid(), os.getegid()
ns.unshare(ns.CLONE_NEWUSER)
for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
try:
    Sandbox.start(rootless=True)
except HostNotReadyError as error:
    print(error)
"""


def test_without_user_namespaces_the_message_says_what_mends_it() -> None:
    message = _run(NO_USER_NAMESPACES)
    assert message.startswith("user namespaces are off here (")
    assert "sudo sysctl user.max_user_namespaces=" in message
    assert ("run in a container with `--privileged`" if os.geteuid() == 0 else "run as root") in message


ROOT_OF_A_CONTAINER = """
import os, sys
from meshlab.kernel import namespaces as ns
from meshlab.kernel.probe import probe
if os.geteuid():
    uid, gid = os.geteuid(), os.getegid()
    ns.unshare(ns.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
ns.restrict_capabilities(set(ns.effective_capabilities()) - {"SYS_ADMIN", "NET_ADMIN"})
print(os.geteuid(), *(f"{finding.name}: {finding.detail}" for finding in probe() if not finding.ok), sep="\\n")
print(next(finding.detail for finding in probe() if finding.name == "namespaces"))
"""


def test_uid_0_without_the_capabilities_of_root_gets_a_lab_in_a_user_namespace() -> None:
    assert _run(ROOT_OF_A_CONTAINER) == "0\nuser, net, mnt, pid, ipc, uts: in a user namespace of your own\n"
