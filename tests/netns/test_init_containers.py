"""Init containers: each runs to its end before what comes behind it, in the mesh already, with its pod's identity."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from meshlab.errors import LabError, MeshlabError

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

CALL = "import urllib.request; urllib.request.urlopen('http://server:8080/', timeout=5).read()"
MESH = """
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-cache, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cache]}}]}]
"""


def topology(cache: str, server: str = "ports: [8080]") -> str:
    """A lab of shop/cache with these keys, first in the file, and of the server that lets nobody else in."""
    return f"""
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {{name: init-containers}}
spec:
  nodes: [node-1, node-2]
  readyTimeoutSeconds: 20
  pods:
    shop/cache: {{node: node-1, serviceAccount: cache, {cache}}}
    shop/other: {{node: node-1}}
    shop/server: {{node: node-2, labels: {{app: server}}, serviceAccount: server, {server}}}
{MESH}"""


ECHO = "ports: [8080]"
PYTHON = 'ports: [8080], run: [python3, -m, http.server, "8080", --bind, "::"]'
"""It listens over both families: a client that a ztunnel has taken in over one never tries the other."""
SLEEPS = "run: [sleep, infinity]"


@pytest.mark.parametrize("server", [ECHO, PYTHON], ids=["echo", "program"])
@pytest.mark.parametrize("main", ["ports: [6379]", SLEEPS], ids=["before-the-echo", "before-a-program"])
def test_an_init_container_calls_the_mesh_as_its_pod(main: str, server: str, lab_factory: LabFactory) -> None:
    """The policy lets nobody in but the pod's account; what the server's program is must not matter."""
    with lab_factory(topology(f'{main}, init: [{{run: [python3, -c, "{CALL}"]}}]', server)) as lab:
        assert not lab.pod("shop/other").http("http://shop%2Fserver:8080/").answered
        assert lab.pod("shop/cache").http("http://shop%2Fserver:8080/").answered


def test_init_containers_run_in_order_and_end_before_the_program(lab_factory: LabFactory) -> None:
    write = "init: [{run: [sh, -c, 'echo one >> /tmp/data/said']}, {run: [sh, -c, 'echo two >> /tmp/data/said']}]"
    listens = "exec python3 -m http.server 6379 --bind ::"
    main = f"ports: [6379], run: [sh, -c, 'cat /tmp/data/said; echo three; {listens}'], emptyDirs: [/tmp/data]"
    with lab_factory(topology(f"{write}, {main}")) as lab:
        assert lab.instance("shop/cache").logs().split() == ["one", "two", "three"]


@pytest.mark.parametrize("main", ["ports: [6379]", SLEEPS], ids=["before-the-echo", "before-a-program"])
def test_one_that_fails_says_its_last_lines_where_nothing_is_restarted(main: str, lab_factory: LabFactory) -> None:
    init = "init: [{run: [sh, -c, 'echo no such table; exit 3']}], restartPolicy: Never"
    with pytest.raises(MeshlabError, match=r"init container 0 of shop/cache ended: exit status 3\n +no such table"):
        lab_factory(topology(f"{main}, {init}")).__enter__()


def test_one_that_fails_is_run_again_until_it_does_not(lab_factory: LabFactory) -> None:
    script = "test -e /tmp/data/tried || { touch /tmp/data/tried; exit 1; }"
    with lab_factory(topology(f"{SLEEPS}, init: [{{run: [sh, -c, '{script}']}}], emptyDirs: [/tmp/data]")) as lab:
        assert lab.instance("shop/cache").running


def test_a_pod_that_is_applied_runs_its_init_container_too(lab_factory: LabFactory) -> None:
    pod = """
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop}
spec:
  nodeName: node-1
  serviceAccountName: %s
  restartPolicy: Never
  initContainers: [{name: wait, image: any, command: [python3, -c, "%s"]}]
  containers: [{name: late, image: any}]
"""
    with lab_factory(topology("ports: [6379]").replace("nodes:", 'images: {"*": {}}\n  nodes:')) as lab:
        lab.apply(pod % ("cache", CALL))
        assert lab.pod("shop/late").http("http://server:8080/").answered
        lab.delete("{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: shop}}")
        with pytest.raises(LabError, match="init container 0 of shop/late ended"):
            lab.apply(pod % ("stranger", CALL.replace("import urllib.request;", "import sys, urllib.request;")))
        assert "shop/late" not in {each.key for each in lab.mesh.pods}
