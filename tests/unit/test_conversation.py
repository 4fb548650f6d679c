"""Requests of many threads to one program: whose answer is whose, who waits for whom, what an interruption leaves."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple, TypedDict

import pytest

from meshlab.errors import LabError
from meshlab.kernel.channel import Channel, ChannelClosedError, pair
from meshlab.kernel.conversation import Conversation, Number
from meshlab.kernel.messages import Op
from meshlab.kernel.uninterrupted import uninterrupted

DEADLINE_S = 10.0
ANYWHERE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""An interruption may come while Python frees an object, where nobody can catch it."""


class To(TypedDict):
    to: str


class Say(NamedTuple):
    op: Op[To]
    text: str = ""


class World:
    """A conversation, and the program's end of it, which answers when told to."""

    def __init__(self) -> None:
        ours, self.program = pair()
        self.events: list[dict[str, Any]] = []
        self.conversation = Conversation("the program", ours, self.events.append)

    def next_request(self) -> dict[str, Any]:
        return dict(self.program.receive(DEADLINE_S)[0])

    def answer(self, request: dict[str, Any], *fds: int) -> None:
        self.program.send({"id": request["id"], "to": request["op"]}, fds)

    def post(self, operation: str, text: str = "") -> Number[To]:
        return self.conversation.post(Say(Op(operation), text))

    def ask(self, operation: str, timeout_s: float = DEADLINE_S) -> str:
        return self.conversation.ask(Say(Op(operation)), [], timeout_s).given["to"]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.conversation.close()
    made.program.close()


def _in_a_thread(work: Callable[[], Any]) -> SimpleQueue[Any]:
    """What ``work`` gives, or raises, comes in the queue."""
    outcome: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put(work())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def test_a_thread_that_waits_for_its_answer_keeps_no_other_from_getting_one(world: World) -> None:
    slow = _in_a_thread(lambda: world.ask("slow"))
    first = world.next_request()
    fast = _in_a_thread(lambda: world.ask("fast"))
    world.answer(world.next_request())
    assert fast.get(timeout=DEADLINE_S) == "fast"
    assert slow.empty()
    world.answer(first)
    assert slow.get(timeout=DEADLINE_S) == "slow"


def test_answers_in_any_order_go_to_who_asked(world: World) -> None:
    waiting = {name: _in_a_thread(lambda name=name: world.ask(name)) for name in map(str, range(20))}  # type: ignore[misc]
    for request in reversed([world.next_request() for _ in waiting]):
        world.answer(request)
    assert {name: outcome.get(timeout=DEADLINE_S) for name, outcome in waiting.items()} == {n: n for n in waiting}


def test_who_waits_for_an_event_keeps_nobody_from_asking_and_gets_it(world: World) -> None:
    event = _in_a_thread(lambda: world.conversation.until(lambda: world.events[0] if world.events else None, 10))
    asked = _in_a_thread(lambda: world.ask("meanwhile"))
    world.answer(world.next_request())
    assert asked.get(timeout=DEADLINE_S) == "meanwhile"
    world.program.send({"event": "ready"})
    assert event.get(timeout=DEADLINE_S) == {"event": "ready"}


def test_an_answer_that_comes_after_its_deadline_is_nobody_elses(world: World) -> None:
    with pytest.raises(LabError, match=r"the program did not answer within 0\.01 s: it hangs, or .* close the lab"):
        world.ask("late", timeout_s=0.01)
    late = world.next_request()
    asked = _in_a_thread(lambda: world.ask("next"))
    following = world.next_request()
    world.answer(late)
    world.answer(following)
    assert asked.get(timeout=DEADLINE_S) == "next"


def test_descriptors_that_nobody_waits_for_any_more_are_closed(world: World) -> None:
    with pytest.raises(LabError):
        world.ask("late", timeout_s=0)
    before = _descriptors()
    with open(os.devnull) as file:
        world.answer(world.next_request(), *[file.fileno()] * 8)
    world.conversation.take_in()
    gc.collect()
    assert _descriptors() == before


def test_what_was_answered_before_the_end_can_still_be_fetched_and_after_closing_costs_no_descriptor() -> None:
    before = _descriptors()
    world = World()
    numbers = [world.post("once"), world.post("twice")]
    with open(os.devnull) as file:
        for _ in numbers:
            world.answer(world.next_request(), file.fileno())
    world.program.close()
    answer = world.conversation.answer(numbers[0], DEADLINE_S)
    assert answer.given["to"] == "once"
    world.conversation.close()
    with pytest.raises(ChannelClosedError):
        world.conversation.answer(numbers[1], DEADLINE_S)
    del answer
    assert _descriptors() == before


def test_the_end_of_the_program_is_told_to_everybody_who_waits(world: World) -> None:
    asked = [_in_a_thread(lambda: world.ask("anyone?")) for _ in range(2)]
    watching = _in_a_thread(lambda: world.conversation.until(lambda: None, DEADLINE_S))
    for _ in asked:
        world.next_request()
    world.program.close()
    for outcome in (*asked, watching):
        assert isinstance(outcome.get(timeout=DEADLINE_S), ChannelClosedError)
    with pytest.raises(ChannelClosedError):
        world.post("too late")


def test_a_message_that_makes_no_sense_ends_its_conversation_and_no_other(world: World) -> None:
    other = World()
    other.program.send({"neither": "answer nor event"})
    with pytest.raises(ChannelClosedError):
        other.conversation.until(lambda: None, DEADLINE_S)
    assert other.conversation.fault
    asked = _in_a_thread(lambda: world.ask("alive"))
    world.answer(world.next_request())
    assert asked.get(timeout=DEADLINE_S) == "alive"
    other.program.close()


def test_more_than_fits_is_written_when_the_program_reads(world: World) -> None:
    numbers = [world.post("much", text="x" * 10_000) for _ in range(100)]
    for request in [world.next_request() for _ in numbers]:
        world.answer(request)
    assert [world.conversation.answer(number, DEADLINE_S).given["to"] for number in numbers] == ["much"] * 100


@ANYWHERE
def test_an_interruption_at_any_moment_of_asking_loses_no_message_and_leaves_no_answer(world: World) -> None:
    with open(os.devnull) as file:
        program = _serving(world.program, file.fileno())
        world.ask("warm")
        interrupted = 0
        for moment in range(200):
            interrupted += _interrupted(lambda: world.ask("once more"), after_s=moment * 5e-6)
            assert world.ask("still there") == "still there"
        world.conversation.take_in()
        assert not world.conversation.asked
        assert interrupted, "the moments are spread over the whole request"
    world.conversation.close()
    assert isinstance(program.get(timeout=DEADLINE_S), ChannelClosedError)


def _serving(channel: Channel, fd: int) -> SimpleQueue[Any]:
    def serve() -> None:
        while True:
            request, _ = channel.receive()
            channel.send({"id": request["id"], "to": request["op"]}, [fd] * 3)

    return _in_a_thread(serve)


def _interrupted(work: Callable[[], Any], after_s: float) -> bool:
    """Whether Ctrl-C, at that moment, came while ``work`` was under way."""

    over = threading.Event()

    def interrupt(*_: object) -> None:
        if not over.is_set():  # a signal that another thread takes is handled here some time after that
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(after_s, 1e-6))
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            over.set()
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGALRM, before)
    return False


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child_the_conversation_is_over(world: World) -> None:
    child = os.fork()
    if child == 0:
        try:
            world.post("not ours")
        except ChannelClosedError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_uninterrupted_work_ends_before_the_interruption_is_raised_and_is_then_undone() -> None:
    done: list[str] = []

    def work() -> str:
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            pass
        done.append("work")
        return "result"

    assert _interrupted(lambda: uninterrupted(work, undo=lambda result: done.append(f"undo {result}")), 0.01)
    assert done == ["work", "undo result"]


@ANYWHERE
def test_an_interruption_at_any_moment_of_uninterrupted_work_is_raised_once_the_work_is_done() -> None:
    for moment in range(400):
        done: list[str] = []
        _interrupted(lambda done=done: uninterrupted(lambda: done.append("work")), after_s=moment * 1e-6)  # type: ignore[misc]
        assert done in ([], ["work"])


def test_uninterrupted_work_gives_its_result_and_raises_its_errors() -> None:
    assert uninterrupted(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda: 1 // 0)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
