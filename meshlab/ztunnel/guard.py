"""Policy at the door of one pod: who may enter, and who may stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshlab.errors import ProtocolError
from meshlab.model import Connection, Decision
from meshlab.protocols.zds import ZdsPod
from meshlab.ztunnel import rbac
from meshlab.ztunnel.state import State, Workload

POLICY_CHANGE = "connection closed due to policy change"


class DeniedError(ProtocolError):
    """Policy does not let this connection in."""


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A connection that was let in and is not over: its app is being dialled, or bytes pass."""

    connection: Connection
    cut: Callable[[], None]


class Guard:
    """Judges each connection when it comes, and all open ones again whenever xDS changes anything."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        self._state = state
        self._pod = pod
        self._live: set[Live] = set()

    def policies(self) -> Mapping[str, rbac.Policy]:
        return self._state.policies

    def decide(self, own: Workload, connection: Connection) -> Decision:
        """Whether a connection may reach ``own``, the workload that this pod is now."""
        return rbac.evaluate(self.policies(), own, connection)

    def admit(self, own: Workload, connection: Connection, cut: Callable[[], None]) -> Live:
        """Decide, and remember what is let in until it is released or cut.

        Both are one step, so that no change of policies can fall between them: the app is dialled afterwards.

        Raises:
            DeniedError: policy does not allow it.
        """
        decision = self.decide(own, connection)
        if not decision.allowed:
            raise DeniedError(f"connection closed due to policy rejection: {decision.rule}")
        live = Live(connection, cut)
        self._live.add(live)
        return live

    def release(self, live: Live) -> bool:
        """Forget a connection that is over; ``False``: it was cut."""
        if live not in self._live:
            return False
        self._live.remove(live)
        return True

    def judge_again(self) -> None:
        """Cut what is no longer allowed. A workload that is gone from xDS changes nothing for those who are in."""
        own = self._state.workload_of(self._pod)
        if own is None:
            return
        for live in list(self._live):
            if not self.decide(own, live.connection).allowed:
                self._live.remove(live)
                live.cut()
