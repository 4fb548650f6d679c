"""What was not as it should be in a lab: read from exits, logs and the control plane's record.

Silence is never good: what could not be asked is a finding of its own. A program can print as many panics as it likes,
so each kind of finding has a bound, and the last line of a kind says how many more there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshlab.controlplane.requests import ReadStatus
from meshlab.errors import LabError
from meshlab.kernel.recorder_requests import LogReport, ReadLogs
from meshlab.lab.running.programs import describe_exit
from meshlab.lab.site import Site
from meshlab.model import InstanceId

_LINES = 12
_LINE_CHARACTERS = 400
_OF_A_PROGRAM = 5
_OF_A_KIND = 20
_ASK_S = 5.0

Logs = Mapping[str, LogReport]


def findings(site: Site) -> list[str]:
    """Every complaint, as a sentence with the lines that show it.

    Raises:
        LabLostError: netd is gone, so nothing can be looked at.
    """
    site.sandbox.poll()
    logs, unread = _logs(site)
    return [
        *_bounded(_exits(site, logs), "programs ended"),
        *_bounded(list(site.not_restarted), "programs could not be started again"),
        *unread,
        *_bounded(panics(logs), "programs printed panics"),
        *_bounded(_of_the_control_plane(site), "pushes were refused, or keys shared"),
    ]


def _logs(site: Site) -> tuple[Logs, list[str]]:
    """What every program has printed; or nothing, and a finding, where the recorder cannot say it.

    Not what an init container has: it is judged by how it ended, and may fail until what it waits for is there.
    """
    recorder = site.programs.recorder
    if recorder is None:
        return {}, []
    try:
        logs: Logs = recorder.ask(ReadLogs(), within_s=_ASK_S)[0]["logs"]
    except LabError as error:
        return {}, [f"nobody knows whether a program printed a panic: {error}"]
    inits = {program.name for program in site.programs.of_role("program") if program.id.is_init}
    return {name: log for name, log in logs.items() if name not in inits}, []


def _exits(site: Site, logs: Logs) -> list[str]:
    """Exits that nobody asked for. Of a program that fails again and again, the first ones and the last.

    A pod's program may end with status 0: its ``restartPolicy`` says what comes of that. One that fails is a finding,
    also where it was started again.
    """
    failed: dict[InstanceId, list[str]] = {}
    for program in tuple(site.programs.every.values()):
        status = site.sandbox.exits.get(program.pid)
        may_end = program.id.role == "program" and status == 0
        if status is not None and not may_end and not program.ended_by_us:
            ended = f"{program.name} ended: {describe_exit(status)}{_tail(logs, program.name)}"
            failed.setdefault(program.id.first, []).append(ended)
    return [ended for lives in failed.values() for ended in _first_and_last(lives)]


def _first_and_last(lives: list[str]) -> list[str]:
    between = len(lives) - _OF_A_PROGRAM
    if between <= 0:
        return lives
    return [*lives[: _OF_A_PROGRAM - 1], f"{lives[-1]}\n    between these, it failed {between} more times"]


def panics(logs: Logs) -> list[str]:
    """The recorder notes such lines as they come, wherever in a long output they stand."""
    found = []
    for name, log in logs.items():
        alarms = log["alarms"][:_OF_A_PROGRAM]
        found += [f"{name} printed a panic:{_quoted(_from(log['text'], alarm))}" for alarm in alarms]
        more = len(log["alarms"]) - len(alarms) + log["more_alarms"]
        if more:
            found.append(f"{name} printed {more} more panics: `lab.logs({name!r})` has what was kept")
    return found


def _of_the_control_plane(site: Site) -> list[str]:
    program = site.programs.newest(InstanceId("control-plane"))
    if program is None or program.peer is None or program.ended_by_us or program.pid in site.sandbox.exits:
        return []
    try:
        answer, _ = program.peer.ask(ReadStatus(), within_s=_ASK_S)
    except LabError as error:
        return [f"nobody knows whether a proxy refused its configuration, or shares a key: {error}"]
    refused = [
        f"{nack['client']} refused {nack['type_url']}, which nobody had asked for: {nack['detail']}"
        for nack in answer["unexpected"]
    ]
    return [*refused, *answer["shared_keys"]]


def _bounded(found: list[str], what: str) -> list[str]:
    more = len(found) - _OF_A_KIND
    return found if more <= 0 else [*found[:_OF_A_KIND], f"and {more} more findings like these: {what}"]


def _from(text: str, alarm: str) -> list[str]:
    at = text.find(alarm)
    return text[at:].splitlines()[:_LINES] if at >= 0 else [alarm]


def _tail(logs: Logs, name: str) -> str:
    lines = logs[name]["text"].splitlines()[-_LINES:] if name in logs else []
    return f"; its last lines:{_quoted(lines)}" if lines else ""


def _quoted(lines: list[str]) -> str:
    return "".join(f"\n    {line[:_LINE_CHARACTERS]}" for line in lines)
