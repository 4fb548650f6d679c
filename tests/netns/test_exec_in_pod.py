"""``pod.exec``: a command of the host's, in a pod, as ``kubectl exec`` would run it."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshlab.errors import KernelRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from meshlab.lab import Lab
    from meshlab.lab.pod import PodHandle

TOPOLOGY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: exec}
spec:
  nodes: [node-1]
  dataplane: {ztunnel: none}
  pods:
    shop/client: {}
    shop/server: {ports: [8080], labels: {app: server}}
    tools/worker:
      run: [sleep, infinity]
      env: {GREETING: hello}
      workingDir: /usr
      emptyDirs: [/mnt, /run/cache/deep]
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec:
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
"""

SCRATCH = [folder for folder in ("/tmp", "/var/tmp", "/run", "/dev/shm") if Path(folder).resolve() == Path(folder)]  # noqa: S108


@pytest.fixture(scope="module")
def shared(lab_factory: Callable[..., AbstractContextManager[Lab]]) -> Iterator[Lab]:
    """One lab for all: every test leaves it as it was."""
    with lab_factory(TOPOLOGY, ztunnel="none") as lab:
        yield lab


@pytest.fixture
def client(shared: Lab) -> PodHandle:
    return shared.pod("shop/client")


def test_output_error_output_and_exit_status_come_back(client: PodHandle) -> None:
    done = client.exec("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_stdin_is_given_whole_and_then_ends(client: PodHandle) -> None:
    data = os.urandom(3 << 20)
    assert client.exec("cat", stdin=data).stdout == data
    assert client.exec("cat").stdout == b""


def test_a_command_that_reads_nothing_ends_all_the_same(client: PodHandle) -> None:
    assert client.exec("true", stdin=bytes(1 << 20)).status == 0


def test_a_command_ends_with_its_main_process_whatever_it_left_in_the_background(client: PodHandle) -> None:
    done = client.exec("sh", "-c", "sleep 1000 & echo $!; echo done", timeout_s=10)
    background, said = done.stdout.split()
    assert said == b"done"
    assert client.exec("kill", "-9", background.decode()).status == 0


def test_a_signal_is_a_negative_status(client: PodHandle) -> None:
    assert client.exec("sh", "-c", "kill -TERM $$").status == -signal.SIGTERM


def test_at_the_deadline_the_command_and_its_children_are_killed(client: PodHandle) -> None:
    with pytest.raises(TimeoutError, match=r"sleep 4321 .* still ran after 0\.3 s and was killed"):
        client.exec("sh", "-c", "sleep 4321 & sleep 4321", timeout_s=0.3)
    _until(lambda: b"4321" not in client.exec("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout.replace(b"sh\0-c\0", b""))


def _until(holds: Callable[[], bool]) -> None:
    """A kill is an order: each try is a round trip to the lab and back."""
    assert any(holds() for _ in range(200))


def test_a_command_that_is_not_there_is_refused_by_name(client: PodHandle) -> None:
    with pytest.raises(KernelRefusedError, match=r"start no-such-command in netns 'pod:shop/client': No such file"):
        client.exec("no-such-command")


def test_the_environment_is_clean_and_takes_what_is_given(client: PodHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "1")
    names = {line.partition(b"=")[0] for line in client.exec("env").stdout.splitlines()}
    assert names == {b"PATH", b"HOME", b"LANG", b"TERM"}
    assert b"COLOUR=red" in client.exec("env", env={"COLOUR": "red"}).stdout.splitlines()


def test_a_pods_own_environment_and_working_folder_are_those_of_its_commands(shared: Lab) -> None:
    done = shared.pod("tools/worker").exec("sh", "-c", "echo $GREETING $PWD")
    assert done.stdout == b"hello /usr\n"


def test_a_command_has_no_descriptor_but_its_three(client: PodHandle) -> None:
    assert client.exec("ls", "/proc/self/fd").stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is what ls reads


def test_ctrl_c_and_broken_pipes_mean_what_they_usually_mean(client: PodHandle) -> None:
    ignored = next(line for line in client.exec("cat", "/proc/self/status").stdout.splitlines() if b"SigIgn" in line)
    assert int(ignored.split()[1], 16) == 0


def test_a_pod_has_a_name(client: PodHandle) -> None:
    assert client.exec("uname", "-n").stdout == b"client\n"
    assert client.exec("cat", "/etc/hostname").stdout == b"client\n" or not os.path.exists("/etc/hostname")


def test_etc_hosts_lists_services_and_pods_as_names_mean_in_the_pods_namespace(shared: Lab, client: PodHandle) -> None:
    names = _hosts(client)
    front = str(shared.mesh.services[0].ipv4)
    server, worker = (shared.pod(name) for name in ("shop/server", "tools/worker"))
    assert names["front"] == names["front.shop"] == names["front.shop.svc.cluster.local"] == front
    assert names["server"] == names["server.shop.pod"] == str(server.ipv4)
    assert names["client"] == str(client.ipv4)
    assert names["worker.tools.pod"] == str(worker.ipv4)
    assert "worker" not in names
    elsewhere = _hosts(worker)
    assert elsewhere["front.shop"] == front
    assert not {"front", "server", "client"} & elsewhere.keys()


def _hosts(pod: PodHandle) -> dict[str, str]:
    """Name -> IPv4 address."""
    lines = [line.split() for line in pod.exec("cat", "/etc/hosts").stdout.decode().splitlines()]
    return {name: address for address, *names in lines for name in names if ":" not in address}


def test_resolv_conf_is_the_labs(client: PodHandle) -> None:
    assert client.exec("cat", "/etc/resolv.conf").stdout == b"nameserver 127.0.0.1\n"


@pytest.mark.parametrize("folder", SCRATCH)
def test_scratch_folders_are_each_pods_own_and_empty_of_the_hosts(shared: Lab, client: PodHandle, folder: str) -> None:
    assert client.exec("touch", f"{folder}/mark").status == 0
    assert client.exec("cat", f"{folder}/mark").status == 0
    assert shared.pod("shop/server").exec("cat", f"{folder}/mark").status == 1
    assert not os.path.exists(f"{folder}/mark")
    client.exec("rm", f"{folder}/mark")


@pytest.mark.parametrize("path", ["/mark", "/etc/mark", "/usr/mark", "/var/mark"])
def test_the_rest_is_the_hosts_and_read_only(client: PodHandle, path: str) -> None:
    done = client.exec("touch", path)
    assert (done.status, b"Read-only file system" in done.stderr or b"denied" in done.stderr) == (1, True)
    assert not os.path.exists(path)


@pytest.mark.parametrize("path", ["/proc/sys/vm/swappiness", "/proc/sys/net/ipv4/ip_forward", "/sys/kernel/profiling"])
def test_what_is_the_machines_cannot_be_set_from_a_pod(client: PodHandle, path: str) -> None:
    done = client.exec("sh", "-c", f"cat {path} > {path}")  # uid 0 needs no capability for these
    assert done.status != 0
    assert b"Read-only" in done.stderr or b"denied" in done.stderr or b"nonexistent" in done.stderr


def test_what_a_test_may_need_stays_visible_and_read_only(
    client: PodHandle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for folder in (Path(sys.prefix), Path(__file__).parent):
        assert client.exec("ls", str(folder)).status == 0
        assert client.exec("touch", str(folder / "mark")).status == 1
        assert not (folder / "mark").exists()
    script = "import meshlab, sys; print(sys.prefix)"
    assert (
        client.exec(sys.executable, "-c", script, env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}).status
        == 0
    )


def test_a_full_tmp_hurts_nobody_else(shared: Lab, client: PodHandle) -> None:
    server = shared.pod("shop/server")
    full, part = "/tmp/full", "/tmp/part"  # noqa: S108 - the pods' own
    done = client.exec("dd", "if=/dev/zero", f"of={full}", "bs=1M", timeout_s=60)
    try:
        assert b"No space left on device" in done.stderr
        assert int(client.exec("stat", "-c", "%s", full).stdout) <= 64 << 20
        assert server.exec("dd", "if=/dev/zero", f"of={part}", "bs=1M", "count=8").status == 0
        assert client.http("http://server:8080/").status == 200
        assert shared.pod("tools/worker").http("http://shop/server:8080/").status == 200
    finally:
        client.exec("rm", full)
        server.exec("rm", part)


@pytest.mark.parametrize("folder", ["/mnt", "/run/cache/deep"])
def test_an_empty_dir_is_empty_writable_and_the_pods_alone(shared: Lab, client: PodHandle, folder: str) -> None:
    worker = shared.pod("tools/worker")
    script = f"ls -A {folder} && echo kept > {folder}/mark && cat {folder}/mark && rm {folder}/mark"
    assert worker.exec("sh", "-c", script).stdout == b"kept\n"
    assert stat.filemode(int(worker.exec("stat", "-c", "%f", folder).stdout, 16)).startswith("drwxrwxrwt")
    assert client.exec("touch", f"{folder}/mark").status == 1


def test_an_empty_dir_where_no_folder_can_be_made_says_so(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    wrong = TOPOLOGY.replace("[/mnt, /run/cache/deep]", "[/no-such-folder]")
    with pytest.raises(KernelRefusedError, match="no /no-such-folder to mount an emptyDir on"), lab_factory(wrong):
        pass


def test_processes_of_the_host_are_not_seen(client: PodHandle) -> None:
    mine = Path("/proc/self/cmdline").read_bytes()
    shown = client.exec("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout
    assert b"meshlab.kernel.forkserver" in shown  # the lab's own are
    assert mine not in shown


def test_links_of_the_pod_are_its_own(client: PodHandle) -> None:
    names = {line.partition(b":")[0].strip() for line in client.exec("cat", "/proc/net/dev").stdout.splitlines()[2:]}
    assert names == {b"lo", b"eth0"}
    shown = set(client.exec("ls", "/sys/class/net").stdout.split())
    assert shown in ({b"lo", b"eth0"}, set(os.listdir(b"/sys/class/net")))  # the host's, where no fresh one is allowed
