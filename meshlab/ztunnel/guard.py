"""Policy at the door of one pod: who may enter, and who may stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshlab.model import Connection, Decision
from meshlab.ztunnel import rbac
from meshlab.ztunnel.state import State, Workload

POLICY_CHANGE = "connection closed due to policy change"


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """An open connection, and what it was judged by: the workload as it was when the connection came."""

    workload: Workload
    connection: Connection
    cut: Callable[[], None]


class Guard:
    """Judges each connection when it comes, and all open ones again when policies change."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._live: set[Live] = set()

    def policies(self) -> Mapping[str, rbac.Policy]:
        return self._state.policies

    def decide(self, workload: Workload, connection: Connection) -> Decision:
        return rbac.evaluate(self.policies(), workload, connection)

    def admit(self, workload: Workload, connection: Connection, cut: Callable[[], None]) -> Live:
        """Remember an open connection until it is released, or cut."""
        live = Live(workload, connection, cut)
        self._live.add(live)
        return live

    def release(self, live: Live) -> bool:
        """Forget a connection that is over; ``False``: it was cut."""
        if live not in self._live:
            return False
        self._live.remove(live)
        return True

    def policies_changed(self) -> None:
        for live in list(self._live):
            if not self.decide(live.workload, live.connection).allowed:
                self._live.remove(live)
                live.cut()
