"""Changes of a mesh that need no manifest, and the way back to the file's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.errors import TopologyError
from meshlab.lab.edits import back_to, is_of, label_namespace, label_pod
from meshlab.lab.sources import read
from meshlab.model import DATAPLANE_MODE

FILE = read("two-nodes").topology.mesh
CLIENT = FILE.pod("shop/client")


def test_labels_are_set_and_taken_away_and_other_pods_are_left_alone() -> None:
    labelled = label_pod(FILE, "shop/client", {"tier": "web"})
    assert labelled.pod("shop/client").labels == {**CLIENT.labels, "tier": "web"}
    assert label_pod(labelled, "shop/client", {"tier": None}) == FILE


def test_a_namespace_takes_its_pods_with_it() -> None:
    out = label_namespace(FILE, "shop", {DATAPLANE_MODE: "none"})
    assert not any(out.is_enrolled(pod) for pod in out.pods if pod.namespace == "shop")


@pytest.mark.parametrize("labels", [{"": "x"}, {"a": "b c"}, {"istio.io/use-waypoint": "Gate!"}])
def test_a_label_that_no_manifest_could_have_is_refused(labels: dict[str, str | None]) -> None:
    with pytest.raises(TopologyError):
        label_pod(FILE, "shop/client", labels)


def test_the_way_back_makes_a_pod_that_went_another_pod() -> None:
    gone = replace(
        FILE, pods=tuple(pod for pod in FILE.pods if pod != CLIENT), former={"shop/client": 1}, places=FILE.places
    )
    back = back_to(gone, FILE)
    assert back.pod("shop/client") == replace(CLIENT, incarnation=1)
    assert back.former == {}


def test_the_way_back_keeps_a_pod_that_differs_in_labels_only_and_remakes_one_that_differs_otherwise() -> None:
    for changed, incarnation in (
        (replace(CLIENT, labels={"x": "y"}), 0),
        (replace(CLIENT, incarnation=3), 3),
        (replace(CLIENT, service_account="other"), 1),
    ):
        there = replace(FILE, pods=tuple(changed if pod == CLIENT else pod for pod in FILE.pods))
        assert back_to(there, FILE).pod("shop/client") == replace(CLIENT, incarnation=incarnation)


def test_a_pod_that_came_is_remembered_so_that_its_name_means_another_pod_the_next_time() -> None:
    late = replace(CLIENT, name="late")
    back = back_to(replace(FILE, pods=(*FILE.pods, late)), FILE)
    assert back.pods == FILE.pods
    assert back.former == {"shop/late": 1}


def test_a_pod_that_has_to_come_anew_is_another_pod_although_nothing_of_it_has_changed() -> None:
    back = back_to(FILE, FILE, ["shop/client"])
    assert back.pod("shop/client") == replace(CLIENT, incarnation=1)
    assert [pod for pod in back.pods if pod.incarnation] == [back.pod("shop/client")]


def test_a_mesh_is_that_of_its_file_whatever_incarnations_its_pods_are_and_not_when_anything_else_differs() -> None:
    again = replace(FILE, pods=tuple(replace(pod, incarnation=2) for pod in FILE.pods), places=9, former={"a/b": 1})
    assert is_of(again, FILE)
    assert not is_of(label_pod(again, "shop/client", {"x": "y"}), FILE)
    assert not is_of(replace(again, pods=again.pods[::-1]), FILE)
    assert not is_of(replace(again, services=()), FILE)
