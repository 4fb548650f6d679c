"""Changes of a running lab's configuration: one writer at a time, and whatever fails leaves what was in effect."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meshlab.controlplane.requests import ReadStatus
from meshlab.errors import NotAcknowledgedError, UsageError
from meshlab.lab.settings import Settings

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{action: DENY, rules: [{{to: [{{operation: {{ports: ["9"]}}}}]}}]}}
"""
AUTHORIZATION = "istio.security.Authorization"
AN_ALLOW = b"\x0a\x03raw\x12\x04shop"


@pytest.fixture(scope="module")
def lab(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory("two-nodes") as lab:
        yield lab


@contextmanager
def hanging(lab: Lab, program: str) -> Iterator[None]:
    lab.site.programs.end(program, signal.SIGSTOP)
    try:
        yield
    finally:
        lab.site.programs.end(program, signal.SIGCONT)


def served(lab: Lab) -> dict[str, Any]:
    peer = lab.site.peer("control-plane")
    assert peer is not None
    return peer.ask(ReadStatus())[0]["versions"]


def test_eight_threads_that_change_policies_lose_nothing(lab: Lab) -> None:
    before = {policy.key for policy in lab.mesh.authorization_policies}
    errors: list[Exception] = []

    def work(thread: int) -> None:
        try:
            for number in range(6):
                lab.apply(DENY.format(name=f"p{thread}-{number}"))
                if number % 3 == 2:
                    lab.delete(DENY.format(name=f"p{thread}-{number - 1}"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    asked_for = {f"shop/p{thread}-{number}" for thread in range(8) for number in range(6) if number % 3 != 1}
    assert {policy.key for policy in lab.mesh.authorization_policies} - before == asked_for


def test_each_change_that_a_hanging_proxy_lets_fail_says_so_in_its_own_time_and_changes_nothing(lab: Lab) -> None:
    before, versions = lab.mesh, served(lab)
    with hanging(lab, "ztunnel@node-1"):
        for name in ("a", "b"):
            started = time.monotonic()
            with pytest.raises(NotAcknowledgedError, match=r"ztunnel@node-1: .*Authorization at version") as caught:
                lab.apply(DENY.format(name=name), timeout_s=0.5)
            assert time.monotonic() - started < 5
            assert "on its way" in "".join(caught.value.__notes__)
            assert lab.mesh is before
            assert served(lab) == versions
    lab.apply(DENY.format(name="c"))
    lab.delete(DENY.format(name="c"))
    assert served(lab) == versions


def test_a_change_that_is_interrupted_leaves_what_was_in_effect(lab: Lab) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before, versions = lab.mesh, served(lab)
    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with hanging(lab, "ztunnel@node-1"), pytest.raises(KeyboardInterrupt) as caught:
            lab.apply(DENY.format(name="a"), timeout_s=30)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert "on its way" in "".join(caught.value.__notes__)
    assert lab.mesh is before
    assert served(lab) == versions
    lab.apply(DENY.format(name="a"))
    lab.delete(DENY.format(name="a"))


def test_a_raw_resource_that_is_not_acknowledged_is_taken_back(lab: Lab) -> None:
    versions = served(lab)
    with hanging(lab, "ztunnel@node-1"), pytest.raises(NotAcknowledgedError):
        lab.push_raw(AUTHORIZATION, "shop/raw", AN_ALLOW, timeout_s=0.3)
    assert served(lab) == versions


def test_a_refusal_names_the_proxy_that_may_still_serve_what_was_refused(lab: Lab) -> None:
    versions = served(lab)
    with hanging(lab, "ztunnel@node-1"):
        words = lab.push_raw(AUTHORIZATION, "shop/mangled", b"\xff\xff\xff", timeout_s=1)
    assert "ztunnel@node-2 refused" in words
    assert words.endswith("who has not acknowledged it: ztunnel@node-1")
    assert served(lab) == versions
    words = lab.push_raw(AUTHORIZATION, "shop/mangled", b"\xff\xff\xff")
    assert words.endswith("All have gone back to the version before")


def test_a_raw_resource_of_no_type_is_an_error_that_names_the_types(lab: Lab) -> None:
    with pytest.raises(UsageError, match=r"'no.such.Type'.* istio.security.Authorization, istio.workload.Address"):
        lab.push_raw("no.such.Type", "x", b"")


def test_a_control_plane_that_comes_back_in_vain_serves_what_was_before(lab_factory: LabFactory) -> None:
    with lab_factory("two-nodes") as lab:
        before, versions = lab.mesh, served(lab)
        with hanging(lab, "ztunnel@node-1"), pytest.raises(NotAcknowledgedError):
            lab.restart_control_plane(replace(before, authorization_policies=()), timeout_s=3)
        assert lab.mesh is before
        assert served(lab) == versions
        lab.apply(DENY.format(name="a"))


def test_a_lab_that_shall_do_something_else_after_a_nack_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match="'after_nack' must be 'resend' or 'leave', not 'forget'"):
        Settings(after_nack="forget")  # type: ignore[arg-type]
