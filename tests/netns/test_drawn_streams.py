"""What is said of a drawn connection that did not go as it should. No lab takes part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from drawn_streams import CHANGE_S, CONNECTIONS, END_S, LATE_S, Script, Seen, content, draw, faults, is_varied, wrong

SCRIPTS = draw(1, CONNECTIONS)


def _right(script: Script) -> tuple[Seen, Seen]:
    """What comes to both ends where nothing is wrong."""
    return tuple(_all_of(script, at_client) for at_client in (True, False))  # type: ignore[return-value]


def _all_of(script: Script, at_client: bool) -> Seen:
    half = script.server if at_client else script.client
    said = content(script, from_client=not at_client)
    kept = half.sent_by(CHANGE_S) if script.denied else len(said)
    return Seen(bytearray(said[:kept]), "reset" if script.denied else "fin", END_S)


def test_of_what_goes_as_it_should_nothing_is_said() -> None:
    assert wrong(SCRIPTS, [_right(script) for script in SCRIPTS]) == []


def test_a_reset_of_the_script_may_lose_what_was_under_way() -> None:
    script = next(one for one in SCRIPTS if one.reset_s is not None)
    assert [*faults(script, Seen(end="reset"), Seen(end="reset"))] == []


def test_the_seeds_are_varied_and_the_same_again() -> None:
    assert all(is_varied(draw(seed, CONNECTIONS)) for seed in range(1, 20))
    assert draw(7, 20) == draw(7, 20) != draw(8, 20)


def _without_its_last_byte(seen: Seen) -> None:
    del seen.got[-1]


def _with_anothers_byte(seen: Seen) -> None:
    seen.got[0] ^= 1


def _with_one_byte_more(seen: Seen) -> None:
    seen.got += b"x"


def _never_ended(seen: Seen) -> None:
    seen.end = ""


def _reset_in_the_end(seen: Seen) -> None:
    seen.end = "reset"


@pytest.mark.parametrize("at_client", [True, False], ids=["client", "server"])
@pytest.mark.parametrize(
    "spoil", [_without_its_last_byte, _with_anothers_byte, _with_one_byte_more, _never_ended, _reset_in_the_end]
)
def test_what_goes_wrong_at_one_end_is_said(spoil: Callable[[Seen], None], at_client: bool) -> None:
    script = next(one for one in SCRIPTS if not one.denied and one.reset_s is None)
    both = _right(script)
    spoil(both[0 if at_client else 1])
    assert len([*faults(script, *both)]) == 1


def test_what_comes_long_after_it_was_sent_is_said() -> None:
    script = next(one for one in SCRIPTS if one.reset_s is None and one.server.is_quick and not any(one.client.unread))
    at_client, at_server = _right(script)
    at_client.came = [(0, script.server.writes[0][0] + LATE_S - 0.1)]
    assert [*faults(script, at_client, at_server)] == []
    at_client.came.append((64, script.server.sent_at(64) + LATE_S + 0.1))
    assert [fault for fault in faults(script, at_client, at_server) if "after it was sent" in fault]


def test_a_second_connection_at_the_server_is_said() -> None:
    at_client, at_server = _right(SCRIPTS[0])
    at_server.more = 1
    assert [*faults(SCRIPTS[0], at_client, at_server)] == ["1 more connections came to the server"]


def test_what_comes_through_long_after_the_policy_that_denies_it_is_said() -> None:
    script = next(one for one in SCRIPTS if one.denied and one.server.fin_s == END_S)
    at_client, at_server = _right(script)
    at_client.got = bytearray(content(script, from_client=False))
    assert [fault for fault in faults(script, at_client, at_server) if "after the policy" in fault]
