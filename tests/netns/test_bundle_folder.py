"""``meshlab bundle``: what a run leaves in the folder and the .zip; the capture opens decrypted in tshark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from meshlab.cli import main
from meshlab.errors import UsageError
from meshlab.lab.sources import read
from meshlab.proofs import pcapng
from meshlab.report.bundle import Bundle, make

if TYPE_CHECKING:
    from meshlab.lab import Lab

LAB = """\
# as it was given
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: bundled}
spec:
  nodes: [{name: node-1, ztunnel: reference}, {name: node-2, ztunnel: reference}]
  pods:
    shop/client: {node: node-1, serviceAccount: client}
    shop/intruder: {node: node-1, serviceAccount: intruder}
    shop/server: {node: node-2, ports: [8080], serviceAccount: server}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-intruder, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/intruder]}}]}]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of a run in which the intruder got through."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "topology.yaml").write_text(LAB)
    return make(read("topology.yaml", folder), folder / "made", mutant="ignores-deny")


def _tshark(made: Bundle, show: str, *fields: str) -> list[str]:
    """The values of these fields in the packets that a display filter chooses."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    asked = [word for field in fields for word in ("-e", field)]
    command = ["tshark", "-r", str(made.folder / "capture.pcapng"), "-Y", show, "-T", "fields", *asked]
    environment = {**os.environ, "HOME": str(made.folder.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_the_file_is_there_as_it_was_given_and_what_was_seen_beside_it(made: Bundle) -> None:
    there = {str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()}
    assert (made.folder / "topology.yaml").read_text() == LAB
    assert there >= {
        "at-the-end.yaml",
        "calls.txt",
        "capture.pcapng",
        "control-plane.json",
        "index.html",
        "logs/ztunnel@node-2.log",
        "report.json",
        "resources.json",
        "rules/shop_server.nft",
    }
    assert read(str(made.folder / "at-the-end.yaml")).topology == read(LAB).topology


def test_what_went_wrong_is_in_report_page_and_dumps(made: Bundle) -> None:
    report = json.loads((made.folder / "report.json").read_text())
    wrong = {(cell["from"], cell["to"]) for cell in report["cells"] if cell["result"] == "failed"}
    assert wrong == {("shop/intruder", "shop/server")}
    page = (made.folder / "index.html").read_text()
    assert page.count('<div class="story"') == 2, "one for each family"
    assert "AuthorizationPolicy shop/no-intruder denies" in page
    assert "sa/intruder" in page.partition("<h3>Logs</h3>")[2], "the proxies' lines about it"
    resources = json.loads((made.folder / "resources.json").read_text())
    assert set(resources["type.googleapis.com/istio.security.Authorization"]) == {"shop/no-intruder"}


def test_the_zip_is_the_folder(made: Bundle) -> None:
    with zipfile.ZipFile(made.archive) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    files = {path for path in made.folder.rglob("*") if path.is_file()}
    assert packed == {str(path.relative_to(made.folder.parent)): path.read_bytes() for path in files}


def test_the_capture_has_secrets_of_sessions_and_nothing_has_a_private_key(made: Bundle) -> None:
    secrets = pcapng.read((made.folder / "capture.pcapng").read_bytes()).secrets
    assert b"CLIENT_TRAFFIC_SECRET_0 " in secrets
    for path in made.folder.rglob("*"):
        assert not path.is_file() or b"PRIVATE KEY" not in path.read_bytes()


def test_tshark_reads_the_tunnels_without_being_told_anything(made: Bundle) -> None:
    authorities = {value for line in _tshark(made, "http2", "http2.headers.authority") for value in line.split(",")}
    assert {"10.64.218.165:8080", "[fd5a:7c1e:90d3:4000:daa6:6d2c:7ddf:743f]:8080"} <= authorities
    methods = _tshark(made, "http2.headers.authority", "http2.headers.method")
    assert {word for line in methods for word in line.split(",")} == {"CONNECT"}
    assert _tshark(made, 'http2.data.data contains "GET /meshlab HTTP/1.1"', "frame.number"), "the inner HTTP"
    identities = _tshark(made, "x509ce.uniformResourceIdentifier", "x509ce.uniformResourceIdentifier")
    assert set(identities) == {f"spiffe://cluster.local/ns/shop/sa/{name}" for name in ("client", "intruder", "server")}


def test_tshark_shows_who_called_whom_in_the_first_packet_of_each_flow(made: Bundle) -> None:
    said = [line for line in _tshark(made, "frame.comment", "frame.comment") if "shop/intruder -> shop/server" in line]
    assert len(said) == 2 * 4, "both families, on each link of the way"
    assert all("expected deny, seen ok; AuthorizationPolicy shop/no-intruder denies" in line for line in said)


def test_secrets_are_kept_only_where_they_are_asked_for(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    with lab_factory(LAB) as lab:
        lab.pod("shop/client").http("http://shop/server:8080/")
        assert lab.tls_secrets() == b""


def test_the_command_makes_a_bundle_replaces_its_own_and_leaves_other_folders_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(LAB)
    (tmp_path / "bundled.bundle").mkdir()
    (tmp_path / "bundled.bundle" / "mine.txt").write_text("keep me")
    refused = CliRunner().invoke(main, ["bundle", "small.yaml"])
    assert (refused.exit_code, "is no bundle" in refused.output) == (2, True)
    assert os.listdir("bundled.bundle") == ["mine.txt"]
    for _ in range(2):
        done = CliRunner().invoke(main, ["bundle", "small.yaml", "--output", "out", "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.output) == {
            "schemaVersion": 1,
            "folder": "out",
            "archive": "out.zip",
            "result": "held",
            "unsaved": [],
        }


STEPS = """\
  steps:
    - {call: {from: shop/intruder, to: "shop/server:8080", family: 4}, expect: deny}
    - replace: []
    - {call: {from: shop/intruder, to: "shop/server:8080", family: 4}, expect: allow}
---
"""


def test_a_file_with_steps_is_gone_through_and_each_call_is_judged_by_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("steps.yaml").write_text(LAB.replace("---\n", STEPS, 1))
    right = CliRunner().invoke(main, ["bundle", "steps.yaml", "--output", "right"])
    assert (right.exit_code, "2 cells, 1 of them denied" in right.output) == (0, True), right.output
    late = CliRunner().invoke(
        main, ["bundle", "steps.yaml", "--output", "late", "--mutant", "verdict-cached-by-4-tuple"]
    )
    assert late.exit_code == 1, late.output
    cells = json.loads(Path("late/report.json").read_text())["cells"]
    assert [(cell["expected"], cell["seen"]) for cell in cells] == [("deny", "deny"), ("allow", "deny")]
    page = Path("late/index.html").read_text()
    assert page.count('<div class="story"') == 1
    assert "policies/no-intruder" not in page
    assert read("late/at-the-end.yaml").topology.mesh.authorization_policies == ()


def test_an_earlier_bundle_stays_where_the_new_run_cannot_be_made(made: Bundle) -> None:
    source = read(str(made.folder / "topology.yaml"))
    with pytest.raises(UsageError, match="no mutant"):
        make(source, made.folder, mutant="nonesuch")
    assert (made.folder / "index.html").is_file()
