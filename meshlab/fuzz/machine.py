"""``MeshMachine``: a Hypothesis state machine in which a mesh changes as it pleases, and calls end as the oracle says.

    class Warehouse(MeshMachine):
        topology = "topologies/warehouse.yaml"

    TestWarehouse = Warehouse.TestCase          a lab of its own for each example

    with lab_factory(Warehouse.topology) as lab:
        run_state_machine_as_test(Warehouse.on(lab))        one lab for all examples, which is reset before each

The rules are what ``strategies.histories`` draws, and are played as the steps of a file are. Rules and invariants of a
subclass stand beside them; ``self.lab`` is the lab.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlab.errors import MeshlabError, ProofFailedError, UsageError
from meshlab.fuzz.properties import verdict_equals_oracle
from meshlab.lab import Lab, LabSettings, open_lab
from meshlab.lab.sources import read
from meshlab.model import Step
from meshlab.play.player import Player
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.histories import ECHO_IMAGE, HistoryDrawing, with_echo_image
from meshlab.topology import dump

_MOST_CALLS = 6
"""So many calls hold the mesh to the oracle after each step."""
_CHOICES = 120
"""As much as one step takes: that of policies takes most."""
_DRAWN = drawn(lambda choices: choices, _CHOICES)


class MeshMachine(RuleBasedStateMachine):
    """Pods come and go, policies change, programs restart; each call and each connection is as it should be."""

    topology: ClassVar[str | Path]
    """A shipped name, a path (from the folder of the subclass's file), or YAML text."""
    settings: ClassVar[LabSettings] = {}
    """Settings of the lab: ``ztunnel``, ``mutant`` ..."""
    _shared: ClassVar[Lab | None] = None

    def __init__(self) -> None:
        """Raises ``UsageError``: there is no ``topology``, or pods cannot come in a shared lab."""
        super().__init__()
        self._closing = ExitStack()
        self.lab = self._reset() if self._shared is not None else self._opened()
        self._player = Player(self.lab, prove=False)
        base = replace(self.lab.topology, mesh=self.lab.mesh, expect=(), steps=())
        self._drawing = HistoryDrawing(Choices(b""), base)

    @classmethod
    def on(cls, lab: Lab) -> type[MeshMachine]:
        """This machine on a lab that is open: it is reset before each example.

        Raises:
            UsageError: pods cannot come in that lab.
        """
        if lab.topology.images.get(ECHO_IMAGE, "") is not None:
            raise UsageError(
                f"in {lab.topology.name} no pod can come: add `images: {{{ECHO_IMAGE}: {{}}}}` to the spec of its Lab"
            )
        return type(cls.__name__, (cls,), {"_shared": lab, "__module__": cls.__module__})

    def teardown(self) -> None:
        """End what is held open, and the lab, where it is this example's own."""
        with self._closing:
            self._player.close()

    def _opened(self) -> Lab:
        cls = type(self)
        if not hasattr(cls, "topology"):
            raise UsageError(f"{cls.__name__} has no topology: give the class one, or use {cls.__name__}.on(lab)")
        folder = Path(getattr(sys.modules[cls.__module__], "__file__", None) or ".").parent
        source = read(str(cls.topology), folder)
        source = replace(source, topology=with_echo_image(source.topology))
        return self._closing.enter_context(open_lab(source, **cls.settings))

    def _reset(self) -> Lab:
        assert self._shared is not None
        self._shared.reset()
        return self._shared

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(choices=_DRAWN)
    def come(self, choices: Choices) -> None:
        """A pod comes, maybe at the address of one that went."""
        self._draw(choices, "come")

    @rule(choices=_DRAWN)
    def go(self, choices: Choices) -> None:
        """A pod goes."""
        self._draw(choices, "go")

    @rule(choices=_DRAWN)
    def label(self, choices: Choices) -> None:
        """A pod that came enters or leaves the mesh."""
        self._draw(choices, "label")

    @rule(choices=_DRAWN)
    def namespace(self, choices: Choices) -> None:
        """A namespace enters or leaves the mesh."""
        self._draw(choices, "namespace")

    @rule(choices=_DRAWN)
    def policies(self, choices: Choices) -> None:
        """Other policies take the place of those that there are."""
        self._draw(choices, "policies")

    @rule(choices=_DRAWN)
    def restart(self, choices: Choices) -> None:
        """The control plane, an agent or a node proxy starts again."""
        self._draw(choices, "restart")

    @rule(choices=_DRAWN)
    def call(self, choices: Choices) -> None:
        """A pod calls another, or a Service."""
        self._draw(choices, "call")

    @rule(choices=_DRAWN)
    def connect(self, choices: Choices) -> None:
        """A connection is opened, and stays open."""
        self._draw(choices, "connect")

    @rule(choices=_DRAWN)
    def ask(self, choices: Choices) -> None:
        """Something is asked on an open connection, which answers or has ended."""
        self._draw(choices, "ask")

    @rule(choices=_DRAWN)
    def deny_what_is_held(self, choices: Choices) -> None:
        """A connection is opened, a policy comes that denies it, and it is asked."""
        self._draw(choices, "deny_what_is_held")

    @rule(choices=_DRAWN)
    def deny_until_a_restart(self, choices: Choices) -> None:
        """A policy denies a call, something comes back, the call is made, the policy goes, and it is made again."""
        self._draw(choices, "deny_until_a_restart")

    @rule(choices=_DRAWN)
    def refuse_a_mangled_policy(self, choices: Choices) -> None:
        """A policy denies a call, another one is mangled and refused, and the call is made."""
        self._draw(choices, "refuse_a_mangled_policy")

    @rule(choices=_DRAWN)
    def take_a_place(self, choices: Choices) -> None:
        """A pod calls; another takes its place, under its name or at its address, calls, and is called."""
        self._draw(choices, "take_a_place")

    @rule(choices=_DRAWN)
    def be_an_endpoint(self, choices: Choices) -> None:
        """A pod becomes an endpoint of a Service, which is called, and goes; the Service is called often."""
        self._draw(choices, "be_an_endpoint")

    @rule(choices=_DRAWN)
    def release_a_pod(self, choices: Choices) -> None:
        """A pod comes and calls one that takes no plaintext; it is released, and calls again."""
        self._draw(choices, "release_a_pod")

    @rule(choices=_DRAWN)
    def restart_an_agent(self, choices: Choices) -> None:
        """An agent is restarted; then each pod of its node calls or, where it may call nobody, is called."""
        self._draw(choices, "restart_an_agent")

    @rule(choices=_DRAWN)
    def restart_the_peers_proxy(self, choices: Choices) -> None:
        """A pod calls another one, whose node proxy is restarted, and calls it again."""
        self._draw(choices, "restart_the_peers_proxy")

    @rule(choices=_DRAWN)
    def upgrade_under_calls(self, choices: Choices) -> None:
        """Slow calls go on while the node proxy of one end is upgraded, and all of them are answered."""
        self._draw(choices, "upgrade_under_calls")

    def _draw(self, choices: Choices, what: str) -> None:
        self._drawing.choices = choices
        for step in getattr(self._drawing, what)():
            taken = self._drawing.take(step)
            if taken is not None:
                self._play(taken)

    def _play(self, step: Step) -> None:
        try:
            self._player.play(len(self._drawing.steps) - 1, step)
        except MeshlabError as error:
            self._tell(error)
            raise
        if self._player.wrong:
            failure = ProofFailedError("\n".join(one.text for one in self._player.wrong))
            self._tell(failure)
            raise failure

    # --- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def calls_end_as_the_oracle_says(self) -> None:
        """A few calls that tell the policies in effect from their neighbours."""
        try:
            verdict_equals_oracle(self.lab, _MOST_CALLS)
        except MeshlabError as error:
            self._tell(error)
            raise

    def _tell(self, error: BaseException) -> None:
        """Add the file in which all this happens, for ``meshlab replay``."""
        file = dump(replace(self._drawing.base, steps=tuple(self._drawing.steps)))
        error.add_note(f"what happened, as a file for `meshlab replay`:\n{file}")
