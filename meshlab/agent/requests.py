"""The requests that an agent answers, and their answers (see ``kernel.messages``)."""

from __future__ import annotations

from typing import NamedTuple, NotRequired, TypedDict

from meshlab.kernel.messages import Done, Op, by_name


class PodAsked(TypedDict):
    """A pod to be enrolled, or one that an agent which comes back knows."""

    uid: str
    name: str
    namespace: str
    service_account: str
    bypass_inbound: NotRequired[bool]
    """The annotation ``ambient.istio.io/bypass-inbound-capture``."""


class Enrolled(TypedDict):
    """Uids of the pods that the node proxy has acknowledged; of the others, why it has not."""

    enrolled: list[str]
    pending: dict[str, str]


class Released(TypedDict):
    """Uids of the pods whose rules are gone; of the others, why they are not."""

    released: list[str]
    failed: dict[str, str]
    unacknowledged: list[str]
    """Uids of which some proxy had not acknowledged by the deadline that it has let go."""


class Removed(TypedDict):
    removed: list[str]
    unacknowledged: list[str]


class RulesText(TypedDict):
    text: str


class ConnectionStatus(TypedDict):
    """A node proxy that is connected to the agent."""

    number: int
    pid: int
    synced: bool
    uids: list[str]


class Status(TypedDict):
    connections: list[ConnectionStatus]
    """In the order in which they came."""
    uids: list[str]
    without_rules: dict[str, str]
    """By uid, why the rules of a pod could not be written."""


class Enrol(NamedTuple):
    """Bring pods into the mesh; a descriptor of the netns of each comes with it."""

    pods: list[PodAsked]
    timeout_s: float = 10.0
    no_proxy: bool = False
    """The node has no proxy, so nobody is waited for."""
    op: Op[Enrolled] = Op("enrol")


class GiveUp(NamedTuple):
    """Answer every ``Enrol`` now: the pods that are still waited for are pending, for this reason."""

    why: str
    op: Op[Done] = Op("give_up")


class Release(NamedTuple):
    """Take pods out of the mesh that go on running."""

    uids: list[str]
    timeout_s: float = 10.0
    op: Op[Released] = Op("release")


class Remove(NamedTuple):
    """Have the proxies let go of pods that end."""

    uids: list[str]
    timeout_s: float = 10.0
    op: Op[Removed] = Op("remove")


class ReadRules(NamedTuple):
    """The rules of a pod as the kernel has them, as nft's text."""

    uid: str
    op: Op[RulesText] = Op("rules")


class ReadStatus(NamedTuple):
    op: Op[Status] = Op("status")


AgentRequest = Enrol | GiveUp | Release | Remove | ReadRules | ReadStatus
REQUESTS: dict[str, type[AgentRequest]] = by_name(AgentRequest)
