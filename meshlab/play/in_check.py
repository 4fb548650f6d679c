"""The steps of a file as ``meshlab check`` plays them, once, behind the matrix: a row for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meshlab.errors import LabError
from meshlab.lab import Lab
from meshlab.model import Mesh, Step
from meshlab.model.report import Result, StepRow
from meshlab.play.faults import Wrong
from meshlab.play.player import NUMBERS, Player
from meshlab.play.words import words


def played_steps(lab: Lab) -> tuple[StepRow, ...]:
    """Play ``spec.steps`` of the file that ``lab`` was opened with, from its mesh on.

    A step that does not come into effect ends it: what is behind it cannot run.
    """
    steps = lab.topology.steps
    lab.replace(Mesh())
    lab.reset()
    player, done, ended = Player(lab), 0, ""
    try:
        player.open_window()
        for place, step in enumerate(steps):
            player.play(place, step)
            done = place + 1
        wrong, doubt = player.close()
    except LabError as error:
        ended, wrong, doubt = str(error), player.wrong, ""
    return tuple(_rows(steps, player, wrong, (done, ended), doubt))


def _rows(
    steps: Sequence[Step], player: Player, wrong: Sequence[Wrong], end: tuple[int, str], doubt: str
) -> Iterator[StepRow]:
    done, why = end
    for place, step in enumerate(steps):
        faults = [one.text for one in wrong if one.stage == place]
        result, reason = Result.HELD, ""
        if faults:
            result, reason = Result.FAILED, faults[0]
        elif place == done:
            result, reason = Result.FAILED, why
        elif place > done:
            result, reason = Result.CANNOT_RUN, f"step {done + 1} did not come into effect"
        elif doubt and place == len(steps) - 1:
            result, reason = Result.CANNOT_TELL, doubt
        traffic = player.numbers.get(place)
        numbers = {name: getattr(traffic, name) for name in (*NUMBERS, "kept_plaintext")} if traffic else {}
        yield StepRow(place=place + 1, step=words(step), result=result, reason=reason, numbers=numbers)
