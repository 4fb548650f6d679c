"""Hypothesis strategies that give plain ``meshlab.model`` objects: topologies, their parts, policies,
routes, calls.

    @given(policies(lab.mesh))
    def test_any_policy(lab, mesh): lab.replace(mesh) ...

Values are near each other on purpose: most bugs of policies are one letter, one bit or one level away. Everything can
be written with ``topology.dump`` and read again. Needs the extra ``[fuzz]``.
"""

from meshlab.strategies.histories import histories
from meshlab.strategies.policies import authorization_policies, peer_authentications, policies, policy_sets
from meshlab.strategies.routes import http_routes, request_policies, routings
from meshlab.strategies.shapes import call_shapes
from meshlab.strategies.topologies import calls, services, spiffe_ids, topologies

__all__ = [
    "authorization_policies",
    "call_shapes",
    "calls",
    "histories",
    "http_routes",
    "peer_authentications",
    "policies",
    "policy_sets",
    "request_policies",
    "routings",
    "services",
    "spiffe_ids",
    "topologies",
]
