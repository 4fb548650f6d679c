"""What was not as it should be in a lab: read from exits, logs and the control plane's record. Never from silence."""

from __future__ import annotations

from meshlab.errors import LabError, LabLostError
from meshlab.lab.programs import describe_exit
from meshlab.lab.site import Site

_LINES = 12


def findings(site: Site) -> list[str]:
    """Every complaint, as a sentence with the lines that show it.

    Raises:
        LabLostError: netd is gone, so nothing can be looked at.
    """
    site.sandbox.poll()
    return [*_exits(site), *_panics(site), *_nacks(site)]


def _exits(site: Site) -> list[str]:
    found = []
    for program in site.programs.by_name.values():
        status = site.sandbox.exits.get(program.pid)
        if status is None or program.ended_by_us:
            continue
        if program.name == "recorder":
            found.append(f"recorder ended: {describe_exit(status)}")
        else:
            found.append(f"{program.name} ended: {describe_exit(status)}{_tail(site, program.name)}")
    return found


def _panics(site: Site) -> list[str]:
    """The recorder notes such lines as they come, wherever in a long output they stand."""
    recorder = site.programs.recorder
    if recorder is None:
        return []
    try:
        answer, _ = recorder.ask("logs")
    except (LabLostError, LabError):
        return []  # its exit is reported already
    found = []
    for name, log in answer["logs"].items():
        for alarm in log["alarms"]:
            at = log["text"].find(alarm)
            lines = log["text"][at:].splitlines()[:_LINES] if at >= 0 else [alarm]
            found.append(f"{name} printed a panic:\n" + "\n".join(f"    {line}" for line in lines))
    return found


def _nacks(site: Site) -> list[str]:
    program = site.programs.by_name.get("control-plane")
    if program is None or program.peer is None or program.pid in site.sandbox.exits:
        return []
    answer, _ = program.peer.ask("status")
    return [
        f"ztunnel@{nack['node']} refused {nack['type_url']}, which nobody had asked for: {nack['detail']}"
        for nack in answer.get("unexpected", [])
    ]


def _tail(site: Site, name: str) -> str:
    try:
        lines = site.programs.logs(name).splitlines()[-_LINES:]
    except (LabLostError, LabError):
        return ""
    return "; its last lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""
