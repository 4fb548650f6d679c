"""The lab of a campaign: opened when it is needed, and again when one was lost."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

from meshlab.errors import LabError
from meshlab.lab import Lab, open_lab
from meshlab.lab.sources import Source
from meshlab.model import DATAPLANE_MODE, Pod, Topology
from meshlab.model import addresses as places

OUTSIDER = "meshlab-outsider"


class Bench:
    """Gives ``lab``; ``drop`` closes it, so that the next time a fresh one is opened."""

    def __init__(self, source: Source, **settings: Any) -> None:
        self.source = source
        self._settings = settings
        self._opened: AbstractContextManager[Lab] | None = None
        self._lab: Lab | None = None

    @property
    def lab(self) -> Lab:
        if self._lab is None:
            opening = open_lab(self.source, **self._settings)
            self._lab = opening.__enter__()
            self._opened = opening
        return self._lab

    @property
    def open(self) -> Lab | None:
        """The lab, if there is one now."""
        return self._lab

    def on(self, topology: Topology) -> Bench:
        """Another bench for other pods, with the same settings."""
        return Bench(replace(self.source, topology=topology), **self._settings)

    def drop(self) -> str:
        """Close the lab; what was wrong with it, if anything."""
        opened, self._opened, self._lab = self._opened, None, None
        if opened is None:
            return ""
        try:
            opened.__exit__(None, None, None)
        except LabError as error:
            return str(error)
        return ""

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(LabError):
            self.drop()


def with_outsider(topology: Topology) -> Topology:
    """``topology`` with a pod out of the mesh that has a service account of the mesh; as it is, where there is one.

    Without such a caller an identity that is taken from an address cannot be told from one that was shown. It comes
    last, so that no other pod's address changes.
    """
    mesh = topology.mesh
    accounts = {(pod.namespace, pod.service_account) for pod in mesh.pods if mesh.is_enrolled(pod)}
    if not accounts or any(
        not mesh.is_enrolled(pod) and (pod.namespace, pod.service_account) in accounts for pod in mesh.pods
    ):
        return topology
    model = next(pod for pod in mesh.pods if mesh.is_enrolled(pod))
    node = [each.name for each in topology.nodes].index(model.node)
    outsider = Pod(
        name=OUTSIDER,
        namespace=model.namespace,
        node=model.node,
        ipv4=places.pod4(node, len(mesh.pods)),
        ipv6=places.pod6(node, len(mesh.pods)),
        labels={DATAPLANE_MODE: "none"},
        service_account=model.service_account,
    )
    return replace(topology, mesh=replace(mesh, pods=(*mesh.pods, outsider)))
