"""The fork server: Python programs born into a lab, several at once, each with what is its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from meshlab.errors import KernelRefusedError, LabLostError
from meshlab.kernel.channel import Channel, pair
from meshlab.kernel.forkserver import ForkServer, Start
from meshlab.kernel.sandbox import Furniture, Mntns, Netns, Sandbox
from meshlab.lab.running.mounts import binds

DEADLINE_S = 20.0
ROOTLESS = [False, True] if os.geteuid() == 0 else [True]
ENTRY = "forked_program:main"
"""Beside this file."""


class Stage:
    """A lab with two netns, and a fork server."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.forks = ForkServer.shared([])
        self.netns: Sequence[Netns] = sandbox.netns(["one", "two"])
        self.mntns: Mntns = sandbox.mntns(Furniture(hostname="stage", binds=binds([Path(__file__).parent])))
        self.channels: list[Channel] = []

    def start(self, *entries: str) -> list[int]:
        """One program in each netns; pids. Our ends of their channels are in ``channels``."""
        ends = [pair() for _ in entries]
        self.channels += [ours for ours, _ in ends]
        with open(os.devnull, "w") as null:
            starts = [
                Start(
                    entry=entry,
                    config={"number": number},
                    fds={"control": theirs.fileno()},
                    netns=self.netns[number],
                    mntns=self.mntns,
                    capabilities=["NET_RAW"][:number],
                    stdout=null.fileno(),
                    stderr=null.fileno(),
                )
                for number, (entry, (_, theirs)) in enumerate(zip(entries, ends, strict=True))
            ]
            try:
                return self.forks.start(self.sandbox, starts)
            finally:
                for _, theirs in ends:
                    theirs.close()


@pytest.fixture(params=ROOTLESS, ids=lambda rootless: "rootless" if rootless else "root")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with closing(Sandbox.start(binds([Path(__file__).parent]), request.param)) as sandbox:
        stage = Stage(sandbox)
        yield stage
        for channel in stage.channels:
            channel.close()


def test_programs_that_start_together_have_each_their_own_netns_config_and_descriptors(stage: Stage) -> None:
    pids = stage.start(ENTRY, ENTRY)
    for number, (pid, channel) in enumerate(zip(pids, stage.channels, strict=True)):
        told, _ = channel.receive(DEADLINE_S)
        assert told["pid"] == pid
        assert told["config"] == {"number": number}
        assert told["netns"] == os.fstat(stage.netns[number].fd).st_ino
        assert told["hostname"] == "stage"
        assert told["open"] == [0, 1, 2, told["control"]]
        assert (told["capabilities"] != 0) == bool(number)
        channel.close()
        assert stage.sandbox.wait_exit(pid, DEADLINE_S) == 0


def test_of_programs_that_start_together_the_one_that_cannot_is_named(stage: Stage) -> None:
    right = stage.mntns
    stage.mntns = Mntns(right.number, right.fd, stage.netns[0].fd)  # a netns is no uts namespace
    with pytest.raises(KernelRefusedError, match=rf"start {ENTRY} in netns 'one'.*setns"):
        stage.start(ENTRY)


def test_no_program_at_all_is_soon_started(stage: Stage) -> None:
    assert stage.start() == []


def test_a_lab_that_has_ended_is_said_to_be_lost(stage: Stage) -> None:
    os.kill(_host_pid(stage.sandbox.netd_fd), signal.SIGKILL)
    with pytest.raises(LabLostError, match="netd"):
        stage.start(ENTRY, ENTRY)


def _host_pid(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pid:")).split()[1])
