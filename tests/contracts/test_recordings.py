"""What a real ztunnel said is said again to our parts, and they answer as they did when it was satisfied.

See fixtures/recordings/README.md for where these come from.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.json_format import ParseDict

from meshlab.controlplane.authority import Authority
from meshlab.model import SpiffeId
from meshlab.oracle import connection, decide
from meshlab.pki import MeshCA, read_csr
from meshlab.proofs.access_log import read_opened
from meshlab.protocols.messages import message, pool
from meshlab.protocols.xds_server import DeltaServer, Snapshot, Stream
from meshlab.protocols.zds import AgentSession, SendPacket, ZdsPod
from meshlab.topology import load, load_manifests
from meshlab.translate import resources
from meshlab.ztunnel.rbac import compile_policy, evaluate

RECORDINGS = sorted(path for path in (Path(__file__).parents[2] / "fixtures/recordings").iterdir() if path.is_dir())
ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"

recorded = pytest.mark.parametrize("folder", RECORDINGS, ids=[path.name for path in RECORDINGS])


@cache
def conversation(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "conversation.jsonl").read_text().splitlines()]


def parse(name: str, document: dict[str, Any]) -> Any:
    return ParseDict(document, message(name)(), descriptor_pool=pool())


def snapshot(entry: Mapping[str, Any]) -> Snapshot:
    decoded = {
        kind: {name: base64.b64decode(body) for name, body in named.items()}
        for kind, named in entry["resources"].items()
    }
    return Snapshot.of(decoded)


class Replay:
    """Our delta server, told what the recorded one was told, in the same order."""

    def __init__(self) -> None:
        self.server = DeltaServer()
        self.streams: dict[int, Stream] = {}
        self.said: dict[int, list[tuple[str, list[str], list[str]]]] = {}
        self.nacks: list[str] = []

    def feed(self, entry: Mapping[str, Any]) -> None:
        match entry["k"]:
            case "push" if "stream" not in entry:
                self._publish(self.server.publish(snapshot(entry)))
            case "push-accepted":
                self.server.accept()
            case "push-rolled-back":
                self._publish(self.server.roll_back())
            case "xds-stream-open":
                self.streams[entry["stream"]] = self.server.open(entry["peer"])
                self.said[entry["stream"]] = []
            case "xds-request":
                stream = self.streams[entry["stream"]]
                request = parse("envoy.service.discovery.v3.DeltaDiscoveryRequest", entry["msg"])
                self._note(entry["stream"], stream.receive(request))
                self.nacks += [nack.detail for nack in stream.nacks]
                stream.nacks.clear()
            case _:
                pass

    def _publish(self, responses: list[tuple[Stream, list[Any]]]) -> None:
        numbers = {id(stream): number for number, stream in self.streams.items()}
        for stream, some in responses:
            self._note(numbers[id(stream)], some)

    def _note(self, number: int, responses: list[Any]) -> None:
        self.said[number] += [
            (response.type_url, sorted(r.name for r in response.resources), sorted(response.removed_resources))
            for response in responses
        ]


def lives(folder: Path) -> list[list[dict[str, Any]]]:
    """The entries of each control plane: a restarted one counts its streams from 1 again."""
    found: list[list[dict[str, Any]]] = []
    for entry in conversation(folder):
        if "agent" in entry:
            continue
        if not found or (entry["k"] == "push" and found[-1][-1]["t"] > entry["t"]):
            found.append([])
        found[-1].append(entry)
    return found


@recorded
def test_the_delta_server_answers_as_it_did_when_the_real_one_was_satisfied(folder: Path) -> None:
    for life in lives(folder):
        replay = Replay()
        for entry in life:
            replay.feed(entry)
        for number, said in replay.said.items():
            recorded_responses = [
                (entry["type"], sorted(name for name, _ in entry["resources"]), sorted(entry["removed"]))
                for entry in life
                if entry["k"] == "xds-response" and entry["stream"] == number
            ]
            assert said == recorded_responses


@recorded
def test_the_real_one_reconnects_with_the_versions_that_it_holds(folder: Path) -> None:
    first, second = lives(folder)
    opening = [entry["msg"] for entry in second if entry["k"] == "xds-request" and "node" in entry["msg"]]
    assert len(opening) == 4, "two nodes, two types"
    assert all("initial_resource_versions" in msg for msg in opening if msg["type_url"] == ADDRESS)
    assert not any("initial_resource_versions" in e["msg"] for e in first if e["k"] == "xds-request")


@recorded
def test_a_nack_names_the_resource_and_is_rolled_back(folder: Path) -> None:
    replay = Replay()
    for entry in lives(folder)[0]:
        replay.feed(entry)
    assert len(replay.nacks) == 2
    assert all("shop/mangled" in nack for nack in replay.nacks)


@recorded
def test_what_is_pushed_is_what_translate_makes_of_the_topology(folder: Path) -> None:
    mesh = load((folder / "topology.yaml").read_text(), "topology.yaml").mesh
    enrolled = [pod.key for pod in mesh.pods if mesh.is_enrolled(pod)]
    made = {
        kind: {name: m.SerializeToString(deterministic=True) for name, m in named.items()}
        for kind, named in resources(mesh, enrolled).items()
    }
    assert Snapshot.of(made).versions == snapshot(lives(folder)[0][0]).versions


@recorded
def test_the_ca_signs_every_csr_of_the_real_one(folder: Path) -> None:
    requests = [entry for entry in conversation(folder) if entry["k"] == "ca-request"]
    assert requests
    authority = Authority(MeshCA().issuer, "cluster.local")
    for entry in requests:
        identity = entry["msg"]["metadata"]["ImpersonatedIdentity"]
        assert read_csr(entry["msg"]["csr"]).uris == (identity,)
        request = parse("istio.v1.auth.IstioCertificateRequest", entry["msg"])
        issued, chain = authority.create(request, datetime.now(UTC), "ztunnel")
        assert issued == SpiffeId.parse(identity)
        assert len(chain) == 3
        assert entry["metadata"] == {"authorization": "Bearer TOKEN", "clusterid": "Kubernetes"}


@recorded
def test_the_agent_says_the_same_to_every_packet_of_the_real_one(folder: Path) -> None:
    nodes = {entry["agent"] for entry in conversation(folder) if "agent" in entry}
    assert len(nodes) == 2
    for node in nodes:
        entries = [e for e in conversation(folder) if e.get("agent") == node and e["k"].startswith("zds-")]
        heard = [bytes.fromhex(entry["hex"]) for entry in entries if entry["k"] == "zds-from-ztunnel"]
        said = [bytes.fromhex(entry["hex"]) for entry in entries if entry["k"] == "zds-to-ztunnel"]
        pods = [
            ZdsPod(uid=e["msg"]["add"]["uid"], **e["msg"]["add"]["workload_info"])
            for e in entries
            if e["k"] == "zds-to-ztunnel" and "add" in e["msg"]
        ]
        session = AgentSession(pods)
        effects = [effect for packet in heard for effect in session.receive(packet)]
        assert [effect.data for effect in effects if isinstance(effect, SendPacket)] == said
        assert session.synced


@recorded
def test_the_access_log_of_the_real_one_names_both_identities(folder: Path) -> None:
    records = [r for path in folder.glob("ztunnel@*.log") for r in read_opened(path.read_text())]
    outbound = [record for record in records if record.direction == "outbound"]
    assert outbound
    for record in outbound:
        SpiffeId.parse(record.source_identity)
        SpiffeId.parse(record.destination_identity)


@recorded
def test_oracle_and_reference_give_the_real_ones_verdicts(folder: Path) -> None:
    topology = load((folder / "topology.yaml").read_text(), "topology.yaml")
    first, *sets = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    checked = 0
    for entry in sets:
        mesh = load_manifests(entry["manifests"], f"set {entry['set']}", topology)
        wire = resources(mesh, [pod.key for pod in mesh.pods if mesh.is_enrolled(pod)])
        policies = {name: compile_policy(cast("Any", policy)) for name, policy in wire[AUTHORIZATION].items()}
        for (source, destination, port, family), letter in zip(first["calls"], entry["verdicts"], strict=True):
            if letter == "-":
                continue
            asked = connection(mesh, mesh.pod(source), mesh.pod(destination), port, family)
            address: Any = wire[ADDRESS][f"Kubernetes//Pod/{destination}"]
            expected = {"a": "allow", "d": "deny"}[letter]
            assert decide(mesh, asked).verdict == expected
            assert evaluate(policies, address.workload, asked).verdict == expected
            checked += 1
    assert checked >= 10_000
