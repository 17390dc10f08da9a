from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from anomaly.core.signals import INTERRUPTS, interrupts_deferred


class EndedError(BaseException):
    """A handler of the program was called."""


@pytest.fixture(params=INTERRUPTS, ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    def handle(number: int, _: object) -> None:
        raise EndedError(number)

    before = signal.signal(request.param, handle)
    yield request.param
    signal.signal(request.param, before)


def interrupted_block(number: signal.Signals, error: Exception | None = None) -> None:
    with interrupts_deferred() as waiting:
        signal.raise_signal(number)
        assert waiting == [number]
        if error is not None:
            raise error


def test_a_block_ends_before_its_interrupt_is_handled(number: signal.Signals) -> None:
    with pytest.raises(EndedError, match=str(int(number))) as caught:
        interrupted_block(number)
    assert caught.value.__context__ is None


def test_after_a_block_interrupts_are_handled_at_once(number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    with interrupts_deferred() as waiting:
        pass
    assert waiting == []
    assert signal.getsignal(number) is handler


def test_an_interrupt_is_handled_though_the_block_failed(number: signal.Signals) -> None:
    with pytest.raises(EndedError) as caught:
        interrupted_block(number, ValueError())
    assert isinstance(caught.value.__context__, ValueError)


def test_within_another_block_the_outer_one_handles_the_interrupt(number: signal.Signals) -> None:
    def nested_blocks() -> None:
        with interrupts_deferred() as outer:
            interrupted_block(number)
            assert outer == [number]

    with pytest.raises(EndedError):
        nested_blocks()


def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interrupts_deferred() as waiting:
        signal.raise_signal(number)
    assert waiting == []
    assert signal.getsignal(number) is signal.SIG_IGN


def test_other_threads_change_nothing(number: signal.Signals) -> None:
    handlers = []

    def work() -> None:
        with interrupts_deferred():
            handlers.append(signal.getsignal(number))

    before = signal.getsignal(number)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
