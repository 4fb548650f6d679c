"""The messages that meshlab speaks: known bytes, and a descriptor set that is what its sources say."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message, pool


def test_the_checked_in_descriptors_are_what_the_proto_files_compile_to(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools (extra `test`) is not installed")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    from meshlab.protocols.compile import DESCRIPTORS, compile_to

    compile_to(tmp_path / "fresh.binpb")
    fresh = FileDescriptorSet.FromString((tmp_path / "fresh.binpb").read_bytes())
    checked_in = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    ours = {file.name: file for file in checked_in.file if not file.name.startswith("google/protobuf/")}
    assert ours == {file.name: file for file in fresh.file if file.name in ours}
    assert {file.name for file in fresh.file} == {file.name for file in checked_in.file}


def test_the_checked_in_stubs_are_what_the_script_makes(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools (extra `test`) is not installed")
    from meshlab.protocols.compile import STUBS, stubs_to, tools

    checked_in = {path.name: path.read_text() for path in STUBS.iterdir()}
    if tools() not in checked_in["__init__.pyi"]:
        pytest.skip("the stubs of our messages are from another version of grpcio-tools")
    stubs_to(tmp_path)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert checked_in == fresh, "run `python -m meshlab.protocols.compile`"


def test_each_message_that_has_a_type_is_one_of_that_name() -> None:
    names = re.findall(r'Literal\["([\w.]+)"\]', files("meshlab.protocols").joinpath("stubs/__init__.pyi").read_text())
    assert len(names) > 20
    assert [message(name).DESCRIPTOR.full_name for name in names] == names


# Bytes as a real ztunnel and an agent exchanged them.
ON_THE_WIRE: dict[str, tuple[Any, str]] = {
    "hello": (lambda: message("istio.workload.zds.ZdsHello")(version="V1"), "0801"),
    "add": (
        lambda: message("istio.workload.zds.WorkloadRequest")(
            add={"uid": "uid-a", "workload_info": {"name": "a", "namespace": "demo", "service_account": "a"}}
        ),
        "0a150a057569642d61120c0a0161120464656d6f1a0161",
    ),
    "snapshot sent": (lambda: message("istio.workload.zds.WorkloadRequest")(snapshot_sent={}), "1a00"),
    "ack": (lambda: message("istio.workload.zds.WorkloadResponse")(ack={}), "0a00"),
    "del has its uid in field 2": (
        lambda: message("istio.workload.zds.WorkloadRequest")(**{"del": {"uid": "u"}}),
        "1203120175",
    ),
    "a policy's matches are field 2": (
        lambda: message("istio.security.Authorization")(
            groups=[{"rules": [{"matches": [{"destination_ports": [80]}]}]}]
        ),
        "2a070a0512034a0150",
    ),
}


@pytest.mark.parametrize("case", ON_THE_WIRE)
def test_messages_have_istios_bytes(case: str) -> None:
    build, wire = ON_THE_WIRE[case]
    assert build().SerializeToString().hex() == wire


@pytest.mark.parametrize("type_url", [ADDRESS_TYPE, AUTHORIZATION_TYPE])
def test_type_urls_name_messages(type_url: str) -> None:
    assert message(type_url.removeprefix("type.googleapis.com/")).DESCRIPTOR.full_name in type_url


def test_any_packs_and_unpacks_within_the_pool() -> None:
    packed = message("google.protobuf.Any")()
    packed.Pack(message("istio.workload.Address")(workload={"uid": "u", "capacity": {"value": 3}}))
    unpacked = message("istio.workload.Address")()
    assert packed.type_url == ADDRESS_TYPE
    assert packed.Unpack(unpacked)
    assert unpacked.workload.capacity.value == 3


def test_an_unknown_message_is_a_key_error() -> None:
    with pytest.raises(KeyError, match=r"istio\.workload\.Adress"):
        message("istio.workload.Adress")


def test_a_users_own_definition_of_the_same_message_does_not_clash() -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import Default

    message("istio.workload.Address")
    theirs = FileDescriptorProto(name="theirs/workload.proto", package="istio.workload")
    theirs.message_type.add(name="Address")
    Default().AddSerializedFile(theirs.SerializeToString())
    assert Default().FindMessageTypeByName("istio.workload.Address") is not pool().FindMessageTypeByName(
        "istio.workload.Address"
    )


def test_importing_the_module_loads_no_protobuf() -> None:
    script = "import sys, meshlab.protocols.messages; sys.exit('google.protobuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
