"""Mutants of the ztunnel break what they say, and nothing else; all are found by their names."""

from __future__ import annotations

import importlib
import inspect
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ztunnel_world import credentials, named, policy, state_of, who, workload

from meshlab.model import Connection
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.tls import Tls, in_trust_domain, one_of
from meshlab.testing.mutants import ztunnel as mutants
from meshlab.testing.registry import MUTANTS, VARIANTS, Mutant
from meshlab.ztunnel.guard import Guard

CLIENT, SERVER = who("client"), who("server")
PARTS = [mutant for mutant in (*MUTANTS.values(), *VARIANTS.values()) if mutant.part in {"ztunnel", "agent"}]


@pytest.mark.parametrize("mutant", PARTS, ids=lambda mutant: mutant.name)
def test_every_entry_is_a_program(mutant: Mutant) -> None:
    module, _, function = mutant.entry.partition(":")
    assert list(inspect.signature(getattr(importlib.import_module(module), function)).parameters) == ["config", "fds"]


def _handshaken(kind: type[Tls]) -> tuple[Tls, Tls]:
    client = kind(credentials(CLIENT).client_context, server_side=False, check_peer=one_of(frozenset({str(SERVER)})))
    server = kind(credentials(SERVER).server_context, server_side=True, check_peer=in_trust_domain(CLIENT.trust_domain))
    client.start()
    server.receive(client.outgoing())
    client.receive(server.outgoing())
    server.receive(client.outgoing())
    assert (client.peer, server.peer) == (SERVER, CLIENT)
    return client, server


@given(sizes=st.lists(st.integers(1, 50_000), min_size=1, max_size=6), wire=st.integers(1_000, 70_000))
def test_clear_after_handshake_loses_no_byte_and_is_clear_after_64_kib_exactly(sizes: list[int], wire: int) -> None:
    client, server = _handshaken(mutants._SoonClear)
    said = random.Random(0).randbytes(sum(sizes))  # noqa: S311  # a test's
    on_the_wire, got, start = b"", b"", 0
    for size in sizes:
        client.send(said[start : start + size])
        on_the_wire += client.outgoing()
        start += size
    for place in range(0, len(on_the_wire), wire):
        got += server.receive(on_the_wire[place : place + wire])
    clear = said[mutants.CLEAR_AFTER_BYTES :]
    assert got == said
    assert on_the_wire.endswith(clear)
    secret = on_the_wire[: len(on_the_wire) - len(clear)]
    assert len(said) < 16 or said[:16] not in secret


def test_the_reference_is_never_clear() -> None:
    client, server = _handshaken(Tls)
    said = random.Random(0).randbytes(200_000)  # noqa: S311  # a test's
    client.send(said)
    on_the_wire = client.outgoing()
    assert not any(said[place : place + 16] in on_the_wire for place in range(0, len(said), 4_000))
    assert server.receive(on_the_wire) == said


def test_ignores_deny_lets_in_what_the_reference_keeps_out() -> None:
    state = state_of(workload("server", "10.2.0.2"), policies=(policy("no", "DENY", destination_ports=[80]),))
    own = named(state, "server")
    pod = ZdsPod(uid="u", name="server", namespace="shop", service_account="server")
    call = Connection(
        source=CLIENT,
        source_ip=own.addresses[0],
        destination="shop/server",
        destination_ip=own.addresses[0],
        port=80,
    )
    assert not Guard(state, pod).decide(own, call).allowed
    assert mutants._Lenient(state, pod).decide(own, call).allowed
