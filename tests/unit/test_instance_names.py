"""The text form of an instance is read back as it was written."""

from __future__ import annotations

import pytest

from meshlab.model import InstanceId


@pytest.mark.parametrize(
    ("text", "instance"),
    [
        ("ztunnel@node-1", InstanceId("ztunnel", "node-1")),
        ("ztunnel@node-1#2", InstanceId("ztunnel", "node-1", 2)),
        ("control-plane", InstanceId("control-plane")),
        ("control-plane#1", InstanceId("control-plane", "", 1)),
        ("shop/server", InstanceId("program", "shop/server")),
        ("shop/server/init-0", InstanceId("program", "shop/server/init-0")),
    ],
)
def test_both_ways(text: str, instance: InstanceId) -> None:
    assert InstanceId.parse(text) == instance
    assert str(instance) == text


def test_a_program_can_be_spelt_out() -> None:
    assert InstanceId.parse("program@shop/server") == InstanceId("program", "shop/server")


@pytest.mark.parametrize(
    "text", ["", "ztunnel", "ztunnel@", "control-plane@node-1", "gateway@x", "node-1", "agent@a#x"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"#|is no instance"):
        InstanceId.parse(text)


def test_generations_of_one_instance_have_their_first_in_common() -> None:
    third = InstanceId("agent", "a").next().next()
    assert (str(third), third.first) == ("agent@a#2", InstanceId("agent", "a"))
