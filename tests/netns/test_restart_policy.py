"""A pod's program that ends by itself is started again as its ``restartPolicy`` says; one that a verb ended is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshlab.errors import AuditError
from meshlab.plan.netns import pod_netns

if TYPE_CHECKING:
    from meshlab.lab import Lab
    from meshlab.lab.instances import Instance

    LabFactory = Callable[..., AbstractContextManager[Lab]]

SERVES_ONE_CALL = """
import http.server, socket
http.server.HTTPServer.address_family = socket.AF_INET6
http.server.HTTPServer(("::", 8080), http.server.SimpleHTTPRequestHandler).handle_request()
"""
LEAVES_ITS_PORT_TO_A_CHILD = """
import os, socket, sys, time
if os.path.exists("/tmp/data/lived"):
    exec(sys.argv[1])
server = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
if os.fork() == 0:
    time.sleep(1000)
server.accept()
open("/tmp/data/lived", "w").close()
sys.exit(1)
"""
SLEEPS = "run: [/bin/sh, -c, exec sleep 1000]"
FAILS = "run: [/bin/sh, -c, 'date +%s.%N; exit 3']"
FAILS_ONCE = "emptyDirs: [/tmp/data], run: [/bin/sh, -c, 'mkdir /tmp/data/lived && exit 3; exec sleep 1000']"
ENDS = "run: [/bin/sh, -c, exit 0]"
A_WHILE = 4
"""Restarts of a program that ends at once: they take 0.7 s, in which one at once would have come."""


def _topology(**pods: str) -> str:
    listed = "\n".join(f"    shop/{name}: {{node: node-2, {keys}}}" for name, keys in pods.items())
    return f"""
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: restarts}}
spec:
  nodes: [node-1, node-2]
  images: {{"*": {{run: [/bin/sh, -c, exit 3]}}}}
  pods:
    shop/client: {{node: node-1}}
{listed}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient}}}}
"""


def _python(script: str, *arguments: str) -> str:
    return f"ports: [8080], run: {json.dumps(['/usr/bin/python3', '-c', script, *arguments])}"


def _answers(lab: Lab) -> bool:
    return lab.pod("shop/client").http("http://shop%2Fserver:8080/").answered


def _wait_a_while(lab: Lab) -> None:
    """``shop/ticks`` ends at once, and is started again each time: what was to happen at once has happened."""
    ticks = lab.instance("shop/ticks")
    ticks.restart()
    ticks.wait_generation(ticks.generation + A_WHILE)


def test_a_server_that_ends_serves_again_at_the_same_place_and_that_is_no_finding(lab_factory: LabFactory) -> None:
    with lab_factory(_topology(server=_python(SERVES_ONE_CALL))) as lab:
        server = lab.instance("shop/server")

        def pod() -> tuple[object, ...]:
            model = lab.pod("shop/server").pod
            netns = os.fstat(lab.netns(pod_netns(model.key)).fd).st_ino
            return model, netns, lab.rules(model.key), lab.site.pods[model.key]

        before = pod()
        for generation in (1, 2, 3):
            assert _answers(lab)
            server.wait_generation(generation)
        assert pod() == before
        assert [server.logs(n).count("GET / ") for n in range(4)] == [1, 1, 1, 0]


def test_a_program_that_fails_again_and_again_is_waited_for_ever_longer_and_is_a_finding(
    lab_factory: LabFactory,
) -> None:
    def fail() -> None:
        with lab_factory(_topology(fails=FAILS)) as lab:
            fails = lab.instance("shop/fails")
            fails.wait_generation(6)
            starts = [float(fails.logs(generation)) for generation in range(6)]
            pauses = [later - earlier for earlier, later in pairwise(starts)]
            assert [pause >= least for pause, least in zip(pauses, (0, 0.1, 0.2, 0.4, 0.8), strict=True)] == [True] * 5
            assert pauses[0] < pauses[-1]

    with pytest.raises(AuditError) as told:
        fail()
    lines = str(told.value).splitlines()
    assert lines[0] == "shop/fails ended: exit status 3; its last lines:"
    assert [line.split()[0] for line in lines if " ended: " in line][1:4] == [f"shop/fails#{n}" for n in (1, 2, 3)]
    assert "between these, it failed" in lines[-1]


def test_the_policy_says_what_is_started_again(lab_factory: LabFactory) -> None:
    def run() -> None:
        with lab_factory(
            _topology(
                ticks=ENDS,
                done=f"{ENDS}, restartPolicy: OnFailure",
                once=f"{ENDS}, restartPolicy: Never",
                never=f"{FAILS}, restartPolicy: Never",
                retried=f"{FAILS_ONCE}, restartPolicy: OnFailure",
            )
        ) as lab:
            _wait_a_while(lab)
            found = {name: lab.instance(f"shop/{name}") for name in ("done", "once", "never", "retried")}
            assert {name: (each.generation, each.running) for name, each in found.items()} == {
                "done": (0, False),
                "once": (0, False),
                "never": (0, False),
                "retried": (1, True),
            }

    with pytest.raises(AuditError) as told:
        run()
    ended = {line.split(";")[0] for line in str(told.value).splitlines() if " ended: " in line}
    assert ended == {"shop/never ended: exit status 3", "shop/retried ended: exit status 3"}


def test_a_process_that_a_program_has_left_does_not_keep_its_port(lab_factory: LabFactory) -> None:
    script = _python(LEAVES_ITS_PORT_TO_A_CHILD, SERVES_ONE_CALL)

    def run() -> None:
        with lab_factory(_topology(server=f"emptyDirs: [/tmp/data], {script}")) as lab:
            assert not _answers(lab)
            lab.instance("shop/server").wait_generation(1)
            assert _answers(lab)

    with pytest.raises(AuditError, match=r"^shop/server ended: exit status 1$"):
        run()


def test_what_a_verb_has_ended_stays_down_until_a_verb_or_reset_starts_it(lab_factory: LabFactory) -> None:
    with lab_factory(_topology(ticks=ENDS, server=SLEEPS)) as lab:
        server = lab.instance("shop/server")
        turns: list[tuple[Callable[[], object], Callable[[], object]]]
        turns = [(server.kill, server.restart), (server.stop, lab.reset)]
        for generation, (end, start) in enumerate(turns):
            end()
            _wait_a_while(lab)
            assert (server.running, server.generation) == (False, generation)
            start()
            assert (server.running, server.generation) == (True, generation + 1)


def _looping(lab: Lab) -> Instance:
    """A program that fails, and is to be started again some tenths of a second from now."""
    fails = lab.instance("shop/fails")
    fails.wait_generation(3)
    lab.sandbox.wait_exit(fails.pid, 5)
    return fails


def _and_nothing_else_is_found(lab_factory: LabFactory, steps: Callable[[Lab], None]) -> None:
    def run() -> None:
        with lab_factory(_topology(ticks=ENDS, fails=FAILS)) as lab:
            steps(lab)

    with pytest.raises(AuditError) as told:
        run()
    findings = [line for line in str(told.value).splitlines() if not line.startswith(" ")]
    assert all(line.startswith("shop/fails") and "ended: exit status 3" in line for line in findings), findings


def test_a_verb_that_comes_between_two_lives_ends_the_loop(lab_factory: LabFactory) -> None:
    def steps(lab: Lab) -> None:
        fails = _looping(lab)
        fails.kill()
        generation = fails.generation
        _wait_a_while(lab)
        assert fails.generation == generation
        lab.reset()
        fails.wait_generation(generation + 2)

    _and_nothing_else_is_found(lab_factory, steps)


POD = """
apiVersion: v1
kind: Pod
metadata: {name: fails, namespace: shop}
spec:
  nodeName: node-2
  containers: [{name: c, image: any}]
"""


def test_a_pod_that_goes_between_two_lives_leaves_nothing(lab_factory: LabFactory) -> None:
    def steps(lab: Lab) -> None:
        fails, mntns = _looping(lab), lab.mounts.known("shop/fails")
        lab.delete(POD)
        generation = fails.generation
        _wait_a_while(lab)
        assert fails.generation == generation
        assert mntns is not None
        assert lab.mounts.known("shop/fails") is None
        assert pod_netns("shop/fails") not in lab.site.netns
        lab.apply(POD)  # another pod of that name, whose program has a loop of its own
        fails.wait_generation(generation + 3)
        assert lab.pod("shop/fails").pod.incarnation == 1

    _and_nothing_else_is_found(lab_factory, steps)


def test_a_node_that_reboots_between_two_lives_starts_each_program_once(lab_factory: LabFactory) -> None:
    def steps(lab: Lab) -> None:
        fails = _looping(lab)
        with lab.transitions.alone:  # the loop waits for that
            generation = fails.generation
            lab.node("node-2").reboot()
            assert fails.generation == generation + 1
        fails.wait_generation(generation + 3)
        program = lab.site.programs.by_name[f"shop/fails#{generation + 2}"]
        assert program.backoff_s == 0.0, "a loop of its own"

    _and_nothing_else_is_found(lab_factory, steps)


def test_a_program_that_cannot_be_started_again_is_a_finding(lab_factory: LabFactory, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)

    def run() -> None:
        with lab_factory(_topology(server=f"run: ['{program}']")) as lab:
            program.unlink()
            seen = lab.site.changes
            lab.sandbox.kill(lab.instance("shop/server").pid)
            assert lab.site.wait_for_change(seen, 10)

    with pytest.raises(AuditError) as told:
        run()
    ended, failed = str(told.value).splitlines()
    assert ended == "shop/server ended: killed by SIGKILL"
    assert failed.startswith("shop/server could not be started again: ")
    assert "No such file" in failed
