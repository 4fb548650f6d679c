"""The netns of a lab by their keys, whose text form is made here and nowhere else.

control-plane       fabric                  one for the whole lab
node:node-1         proxy:node-1            one for each node, and one for its node proxy
proxy:node-1#1                              of a second node proxy, while two overlap
pod:shop/client                             one for each pod

Nobody cuts such a text into parts: whoever has one looks it up among the keys of a lab.
"""

from __future__ import annotations

from typing import NewType

NetnsKey = NewType("NetnsKey", str)

CONTROL_PLANE = NetnsKey("control-plane")
FABRIC = NetnsKey("fabric")
"""It only routes, from node to node."""


def node_netns(name: str) -> NetnsKey:
    return NetnsKey(f"node:{name}")


def proxy_netns(node: str, number: int = 0) -> NetnsKey:
    return NetnsKey(f"proxy:{node}" + f"#{number}" * bool(number))


def pod_netns(key: str) -> NetnsKey:
    return NetnsKey(f"pod:{key}")


def netns_key(text: str) -> NetnsKey:
    """Return the key that a user has written, which may be of no netns that there is."""
    return NetnsKey(text)
