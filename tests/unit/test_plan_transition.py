"""From one mesh to the next: which stages, in which order, about whom, and what is served meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.model import DATAPLANE_MODE, Mesh, Namespace, Pod, Program, Service, ServicePort
from meshlab.model.addresses import pod4, pod6
from meshlab.model.workload import BYPASS_INBOUND
from meshlab.plan.transition import Stage, in_effect, transition, without_pods
from meshlab.topology import load

AMBIENT = {DATAPLANE_MODE: "ambient"}
SERVER = Service(
    name="server",
    namespace="shop",
    ipv4=None,
    ipv6=None,
    selector={"app": "server"},
    ports=(ServicePort(port=80, target_port=80),),
)


def pod(name: str, place: int = 0, **more: object) -> Pod:
    given = {"labels": {"app": name}, **more}
    return Pod(name=name, namespace="shop", node="a", ipv4=pod4(0, place), ipv6=pod6(0, place), **given)  # type: ignore[arg-type]


def mesh(*pods: Pod, ambient: bool = True, services: tuple[Service, ...] = ()) -> Mesh:
    labels = AMBIENT if ambient else {}
    return Mesh(namespaces=(Namespace(name="shop", labels=labels),), pods=pods, services=services)


def names(stages: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in stages]


def about(stages: tuple[Stage, ...], name: str) -> list[str]:
    return [one.key for stage in stages if stage.name == name for one in stage.pods]


CLIENT, SERVING = pod("client"), pod("server", 1)
RUNNING = replace(SERVING, program=Program(argv=("nginx",)))


def test_a_lab_is_built_from_nothing_in_istio_s_order() -> None:
    stages = transition(Mesh(), mesh(CLIENT, RUNNING))
    assert names(stages) == ["make", "announce", "enrol", "open", "start", "publish", "name"]
    assert about(stages, "enrol") == ["shop/client", "shop/server"]
    assert about(stages, "start") == ["shop/server"]


def test_nothing_but_publishing_and_naming_is_left_where_no_pod_changes() -> None:
    same = mesh(CLIENT, SERVING)
    assert names(transition(same, same)) == ["publish", "name"]


def test_the_echo_needs_no_second_push_and_a_program_is_no_endpoint_before_it_listens() -> None:
    before = mesh(CLIENT)
    for new, unhealthy in ((SERVING, frozenset()), (RUNNING, frozenset({"shop/server"}))):
        announced, published = (
            stage.served for stage in transition(before, mesh(CLIENT, new)) if stage.name in ("announce", "publish")
        )
        assert announced is not None
        assert announced.unhealthy == unhealthy
        assert (announced == published) == (not unhealthy)


def test_an_endpoint_that_goes_is_unhealthy_before_its_program_ends_and_a_mere_client_is_not_withdrawn() -> None:
    before = mesh(CLIENT, SERVING, services=(SERVER,))
    stages = transition(before, mesh(CLIENT, services=(SERVER,)))
    assert names(stages) == ["withdraw", "leave", "publish", "name"]
    served = stages[0].served
    assert served is not None
    assert (served.unhealthy, served.mesh) == (frozenset({"shop/server"}), before)
    assert names(transition(before, mesh(SERVING, services=(SERVER,)))) == ["leave", "publish", "name"]


def test_a_pod_that_is_created_again_goes_before_it_comes_since_both_have_one_address() -> None:
    again = replace(SERVING, incarnation=1, service_account="other")
    stages = transition(mesh(CLIENT, SERVING), mesh(CLIENT, again))
    assert names(stages) == ["leave", "make", "announce", "enrol", "open", "publish", "name"]
    assert about(stages, "leave") == about(stages, "make") == ["shop/server"]


@pytest.mark.parametrize(("before", "after", "stage"), [(False, True, "enrol"), (True, False, "release")])
def test_running_pods_enter_and_leave_the_mesh_before_that_is_published(
    *, before: bool, after: bool, stage: str
) -> None:
    stages = transition(mesh(CLIENT, ambient=before), mesh(CLIENT, ambient=after))
    assert names(stages) == [stage, "publish", "name"]
    served = stages[1].served
    assert served is not None
    assert served.hbone == (frozenset({"shop/client"}) if after else frozenset())


def test_while_some_pods_enter_only_those_that_stay_in_are_announced_as_members() -> None:
    outside = pod("late", 2, labels={DATAPLANE_MODE: "none"})
    inside = replace(outside, labels=AMBIENT)
    (announced,) = [
        stage.served
        for stage in transition(mesh(CLIENT, outside), mesh(CLIENT, inside, SERVING))
        if stage.name == "announce"
    ]
    assert announced is not None
    assert announced.hbone == {"shop/client", "shop/server"}


def test_other_rules_are_written_where_only_the_bypass_changes() -> None:
    bypassing = replace(CLIENT, annotations={BYPASS_INBOUND: "true"})
    stages = transition(mesh(CLIENT), mesh(bypassing))
    assert names(stages) == ["enrol", "publish", "name"]


def test_a_label_that_changes_no_membership_is_only_published() -> None:
    assert names(transition(mesh(CLIENT), mesh(replace(CLIENT, labels={"app": "other"})))) == ["publish", "name"]


def test_without_pods_knows_them_by_their_uid() -> None:
    again = replace(SERVING, incarnation=1)
    assert without_pods(mesh(CLIENT, again), [SERVING]).pods == (CLIENT, again)
    assert in_effect(mesh(CLIENT, SERVING)).hbone == {"shop/client", "shop/server"}


# --- in which order the pods of a new mesh start, and who is published as healthy meanwhile ---------------------------

WAITING = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: stages}
spec:
  pods:
    shop/waits: {init: [{run: ["true"]}]}
    shop/echo: {ports: [8080]}
    shop/runs: {run: [sleep, infinity]}
    shop/both: {run: [sleep, infinity], init: [{run: ["true"]}]}
"""


def built(text: str) -> tuple[Stage, ...]:
    """The stages that build the lab of a file."""
    return transition(Mesh(), load(text, "stages.yaml").mesh)


def test_pods_with_init_containers_start_behind_those_that_they_may_wait_for() -> None:
    """And with those published as healthy, since a Service leads to nobody else."""
    started = [
        (stage.name, [pod.name for pod in stage.pods], stage.served and sorted(stage.served.unhealthy))
        for stage in built(WAITING)
        if stage.name in {"announce", "start", "ready", "publish"}
    ]
    assert started == [
        ("announce", ["waits", "echo", "runs", "both"], ["shop/both", "shop/runs", "shop/waits"]),
        ("start", ["runs"], None),
        ("ready", ["runs"], ["shop/both", "shop/waits"]),
        ("start", ["waits", "both"], None),
        ("publish", [], []),
    ]


def test_nothing_is_published_in_between_where_nobody_waits() -> None:
    without = "\n".join(line for line in WAITING.splitlines() if "init:" not in line)
    assert names(built(without)) == ["make", "announce", "open", "start", "publish", "name"]
