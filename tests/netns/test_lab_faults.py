"""kill -9 and Ctrl-C at named steps of a lab: whoever dies, nothing of the lab is left, and the test says who it was.

``doomed.py`` has the labs, in a pytest of their own. They stop at a step and tell; then the victim dies *there*.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import doomed
import pytest
from leftovers import Belongings, children, command, host, pid_inside, state

from meshlab.errors import AuditError, LabLostError, NotAcknowledgedError, NotEnrolledError
from meshlab.lab.steps import STEPS

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

DEADLINE_S = 30.0
GONE_WITHIN_S = 5.0
NAMED_STEPS = (
    "after unshare",
    "before the first fork",
    "mid-batch",
    doomed.BETWEEN_ADD_AND_ACK,
    "mid-call",
    "mid-teardown",
)
VICTIMS = ("pytest", "xdist-worker", "netd")
SEEDS = (1, 2)


def _drawn(seed: int) -> list[tuple[str, str]]:
    """Every named step once, in the seed's order, each with a victim drawn."""
    draw = random.Random(seed)  # noqa: S311 - a seed is to be repeated
    return [(step, draw.choice(VICTIMS)) for step in draw.sample(NAMED_STEPS, len(NAMED_STEPS))]


DEATHS = [(seed, step, victim) for seed in SEEDS for step, victim in _drawn(seed)]


def test_the_seeds_draw_every_victim_early_and_late() -> None:
    assert {step for _, step, _ in DEATHS} == set(NAMED_STEPS)
    assert {step for step in NAMED_STEPS if step != doomed.BETWEEN_ADD_AND_ACK} <= set(STEPS)
    assert {victim for _, _, victim in DEATHS} == set(VICTIMS)


@dataclass(frozen=True, slots=True)
class Doomed:
    """A pytest that has a lab, which waits at a step."""

    process: subprocess.Popen[bytes]
    watched: socket.socket
    folder: Path

    @property
    def owner(self) -> int:
        """Who has the lab: pytest, or its xdist worker."""
        pid, _, _ = struct.unpack("3i", self.watched.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)

    def go_on(self) -> None:
        self.watched.sendall(b".")

    def said(self) -> str:
        return self.watched.recv(65536).decode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a socket's name has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="doomed-") as made:
        yield Path(made)


def _pytest(folder: Path, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
    """A pytest on ``doomed.py`` whose home, temporary and working folder is this one."""
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), *sys.path)))
    mine = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [*argv, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **mine, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


class _Stage:
    """Starts a doomed pytest and waits until its lab has come to the step."""

    def __init__(self, folder: Path, step: str, *arguments: str) -> None:
        watcher = folder / "watcher"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(watcher))
            listener.listen()
            listener.settimeout(DEADLINE_S)
            self.process = _pytest(
                folder,
                *arguments,
                f"{doomed.__file__}::test_stops_at_a_step",
                DOOMED_STEP=step,
                DOOMED_WATCHER=str(watcher),
            )
            self.watched, _ = listener.accept()
        self.watched.settimeout(DEADLINE_S)
        watcher.unlink()
        self.folder = folder

    def __enter__(self) -> Doomed:
        assert self.watched.recv(4) == b"here"
        return Doomed(self.process, self.watched, self.folder)

    def __exit__(self, *_: object) -> None:
        self.watched.close()
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize(
    ("step", "victim"), [pytest.param(step, victim, id=f"seed-{s}-{step}-{victim}") for s, step, victim in DEATHS]
)
def test_whoever_is_killed_nothing_is_left_within_five_seconds(folder: Path, step: str, victim: str) -> None:
    before, segments = host(), _shared_memory()
    arguments = ["-n", "1", "--max-worker-restart=0"] if victim == "xdist-worker" else ["-p", "no:xdist"]
    with _Stage(folder, step, *arguments) as lab:
        if step == doomed.BETWEEN_ADD_AND_ACK:
            _wait_for_a_frozen_process(lab.owner)
        with Belongings.of(lab.owner, with_owner=victim != "netd") as theirs:
            assert theirs.links("net"), "the lab has a netns by now"
            if victim == "netd":
                os.kill(_netd(theirs), signal.SIGKILL)
                _see_it_fail(lab)
            else:
                os.kill(lab.owner, signal.SIGKILL)
            assert theirs.left(GONE_WITHIN_S) == []
        if victim != "netd":
            assert _files(folder) == []
        if victim == "xdist-worker":
            assert b"crashed" in lab.process.communicate(timeout=DEADLINE_S)[0]
    assert (host(), _shared_memory()) == (before, segments)


def _see_it_fail(lab: Doomed) -> None:
    """The owner lives, and says that netd was killed."""
    lab.go_on()
    assert re.match(r"(LabLostError|AuditError): .*netd", lab.said())


def _netd(theirs: Belongings) -> int:
    """PID 1 of the lab; before there is one, the process that is to make it."""
    return next((pid for pid in theirs.pids if pid_inside(pid) == 1), min(theirs.pids))


def _wait_for_a_frozen_process(owner: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with Belongings.of(owner) as theirs:
            if any(state(pid) == "T" for pid in theirs.pids):
                return
    raise AssertionError("no agent froze between add and ack")


def _shared_memory() -> list[str]:
    """The host's own segments with the key that the lab uses."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return [line for line in lines if line.split()[0] == str(doomed.IPC_KEY)]


def _files(folder: Path) -> list[Path]:
    """What is not pytest's own."""
    return [path for path in folder.rglob("*") if not path.is_dir() and "pytest-of-" not in str(path)]


# --- a part of the lab is killed -------------------------------------------------------------------------------------


def test_a_killed_program_fails_the_running_test_by_name_and_closing_leaves_nothing(folder: Path) -> None:
    process = _pytest(folder, "-p", "no:xdist", "-rfE", f"{doomed.__file__}::test_survives", COLUMNS="300")
    output = process.communicate(timeout=120)[0].decode()
    for program in doomed.PROGRAMS:
        told = rf"FAILED \S*::test_survives\[{program}\] - .*{program} (ended|is gone): killed by SIGKILL"
        assert re.search(told, output), output
    assert "is held by" not in output
    assert "5 failed" in output


def test_an_agent_that_dies_between_add_and_ack_is_named_and_nothing_is_left(lab_factory: LabFactory) -> None:
    entries = {"agent": "doomed:dies_after_add"}
    watched: list[Belongings] = []
    with (
        pytest.raises(LabLostError, match=r"agent@node-\d is gone: killed by SIGKILL"),
        lab_factory(doomed.TOPOLOGY, ztunnel="reference", entries=entries, step=_look("enrolling", watched)),
    ):
        pass
    _all_gone(watched)


def test_a_proxy_that_ends_at_once_is_not_waited_for_but_named_with_its_exit_and_nothing_is_left(
    lab_factory: LabFactory,
) -> None:
    watched: list[Belongings] = []
    with (
        pytest.raises(NotEnrolledError, match=r"shop/client: the node proxy is gone: exit status 1") as failure,
        lab_factory(doomed.TOPOLOGY, ztunnel=_FALSE, step=_look("enrolling", watched)),
    ):
        pass
    _all_gone(watched)
    assert not getattr(failure.value, "__notes__", []), "nothing was in effect before, to which it could go back"


@pytest.mark.parametrize("step", ["pods built", "enrolled", "links open", "ready"])
def test_a_lab_that_is_not_finished_leaves_no_recording_open(lab_factory: LabFactory, step: str) -> None:
    class StopHereError(Exception):
        pass

    def stop(name: str) -> None:
        if name == step:
            raise StopHereError

    before = _recordings()
    with pytest.raises(StopHereError), lab_factory(doomed.TOPOLOGY, step=stop):
        pass
    assert _recordings() == before


def _recordings() -> int:
    """How many memfds of recorders this process has open."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("memfd:recording" in name for name in names)


NOBODY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
"""


def test_a_change_does_not_wait_for_a_proxy_that_died(lab_factory: LabFactory) -> None:
    def kill_and_change() -> None:
        with lab_factory(doomed.TOPOLOGY) as lab:
            lab.sandbox.kill(lab.site.programs.by_name["ztunnel@node-1"].pid)
            with pytest.raises(NotAcknowledgedError, match="not in effect: ztunnel@node-1 is gone: killed by SIGKILL"):
                lab.apply(NOBODY)

    with pytest.raises(AuditError, match="ztunnel@node-1 ended: killed by SIGKILL"):
        kill_and_change()


NOISY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: noisy}
spec:
  nodes: [node-1]
  dataplane: {ztunnel: none}
  pods:
    shop/noisy: {node: node-1, run: [sh, -c, "yes 'thread panicked at x.rs' | head -n 13312; exec sleep 600"]}
"""


def test_an_audit_that_could_not_ask_the_recorder_says_so(lab_factory: LabFactory) -> None:
    def close_with_a_stuck_recorder() -> None:
        with lab_factory(doomed.TOPOLOGY) as lab:
            lab.site.programs.end("recorder", signal.SIGSTOP)

    with pytest.raises(AuditError, match="nobody knows whether a program printed a panic: recorder did not answer"):
        close_with_a_stuck_recorder()


def test_an_audit_that_could_not_ask_the_control_plane_says_so_beside_what_it_found(lab_factory: LabFactory) -> None:
    def close_with_a_stuck_control_plane() -> None:
        with lab_factory(doomed.TOPOLOGY) as lab:
            lab.site.programs.end("control-plane", signal.SIGSTOP)
            echo = lab.site.programs.by_name["echo@node-2"].pid
            lab.sandbox.kill(echo)
            lab.sandbox.wait_exit(echo, DEADLINE_S)

    with pytest.raises(AuditError, match="nobody knows whether a proxy refused its configuration") as told:
        close_with_a_stuck_control_plane()
    assert "echo@node-2 ended: killed by SIGKILL" in str(told.value)


def test_a_program_that_panics_thousands_of_times_is_told_in_a_few_lines(lab_factory: LabFactory) -> None:
    def wait_until_it_has_panicked() -> None:
        with lab_factory(NOISY) as lab:
            deadline = time.monotonic() + DEADLINE_S
            while lab.logs("shop/noisy").count("\n") < 5000 and time.monotonic() < deadline:
                pass

    with pytest.raises(AuditError, match=r"shop/noisy printed \d+ more panics") as told:
        wait_until_it_has_panicked()
    assert len(str(told.value)) < 10_000


_FALSE = next(path for path in ("/bin/false", "/usr/bin/false") if os.path.exists(path))


def _look(step: str, watched: list[Belongings]) -> Callable[[str], None]:
    """A hook that takes note, at a step, of what this process' labs have."""

    def look(name: str) -> None:
        if name == step:
            watched.append(Belongings.of(os.getpid(), with_owner=False))

    return look


def _all_gone(watched: list[Belongings]) -> None:
    (theirs,) = watched
    with theirs:
        assert theirs.links("net")
        assert theirs.left(GONE_WITHIN_S) == []


def test_a_fork_server_that_dies_harms_no_lab_and_is_started_anew(lab_factory: LabFactory) -> None:
    with lab_factory(doomed.TOPOLOGY) as lab:
        (server,) = (pid for pid in children(os.getpid()) if "-m meshlab.kernel.forkserver" in command(pid))
        os.kill(server, signal.SIGKILL)
        assert lab.pod("shop/client").http("http://shop/server:8080/").status == 200
        with lab_factory(doomed.TOPOLOGY) as another:
            assert another.pod("shop/client").http("http://shop/server:8080/").status == 200


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


_SILENT = "import signal, socket; server = socket.create_server(('0.0.0.0', 8080)); signal.pause()"
UNANSWERED = doomed.TOPOLOGY.replace("ports: [8080]", f'ports: [8080], run: ["{sys.executable}", -c, "{_SILENT}"]')
"""The server takes connections and never answers, so its calls are still under way when Ctrl-C comes."""


IN_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born ignoring it
from meshlab.cli import main
main()
"""


class _Terminal:
    """``meshlab check`` in the foreground of a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        file = folder / "lab.yaml"
        file.write_text(UNANSWERED)
        self.screen, theirs = pty.openpty()
        argv = [sys.executable, "-c", IN_A_TERMINAL, "check", str(file)]
        env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=env, start_new_session=True
        )
        os.close(theirs)

    def read_until(self, text: str) -> str:
        shown, deadline = "", time.monotonic() + DEADLINE_S
        while text not in shown and select.select([self.screen], [], [], deadline - time.monotonic())[0]:
            try:
                shown += os.read(self.screen, 4096).decode()
            except OSError:  # EIO: the last process that had the terminal is gone
                break
        return shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.mark.parametrize("moment", ["building", "calling"])
def test_ctrl_c_ends_130_after_a_clean_teardown(folder: Path, moment: str) -> None:
    before = host()
    with _Terminal(folder) as terminal:
        assert moment in terminal.read_until(moment)
        with _once_it_has_a_netns(terminal.process.pid) as theirs:
            os.killpg(terminal.process.pid, signal.SIGINT)  # as a terminal does: to all in its foreground
            rest = terminal.read_until("no such text")
            assert terminal.process.wait(DEADLINE_S) == 130, rest
            assert theirs.left(GONE_WITHIN_S) == []
    assert "Traceback" not in rest
    assert "proving" not in rest
    assert rest.rstrip().endswith("interrupted")
    assert _files(folder) == [folder / "lab.yaml"]
    assert host() == before


def _once_it_has_a_netns(owner: int) -> Belongings:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        theirs = Belongings.of(owner)
        if theirs.links("net"):
            return theirs
        theirs.close()
    raise AssertionError("no lab was built")
