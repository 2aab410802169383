"""What waits for a scheduler is bounded, and what is dropped is counted."""

import dataclasses
import threading

import pytest

from skipconv_jax.live.inbox import Inbox


@dataclasses.dataclass(frozen=True)
class Item:
    number: int
    event: str = ""


def _taken(inbox):
    items = []
    while (item := inbox.take()) is not None:
        items.append(item)
    return items


def test_newest_drops_what_waited_longest():
    inbox = Inbox(2, "newest")
    for number in range(5):
        inbox.put(Item(number))
    assert len(inbox) == 2
    assert inbox.dropped == 3
    assert inbox.first() == Item(3)
    assert _taken(inbox) == [Item(3), Item(4)]


def test_oldest_drops_what_arrives():
    inbox = Inbox(2, "oldest")
    for number in range(5):
        inbox.put(Item(number))
    assert inbox.dropped == 3
    assert _taken(inbox) == [Item(0), Item(1)]


@pytest.mark.parametrize("policy", ["newest", "oldest"])
def test_the_event_of_a_dropped_frame_is_of_the_next_one_taken(policy):
    inbox = Inbox(1, policy)
    for item in (Item(0, "connected"), Item(1), Item(2, "damaged"), Item(3, "damaged")):
        inbox.put(item)
    events = []
    for number in range(4, 6):
        taken = inbox.take()
        events.append(taken.event)
        inbox.put(Item(number))
    assert "; ".join(filter(None, events)) == "connected; damaged"


def test_events_of_dropped_frames_are_bounded_too():
    inbox = Inbox(1)
    for number in range(1000):
        inbox.put(Item(number, f"event {number}"))
    assert len(inbox.take().event) < 200


def test_a_queue_of_several_keeps_events_where_they_belong():
    inbox = Inbox(2, "newest")
    for item in (Item(0, "a"), Item(1), Item(2, "b"), Item(3)):
        inbox.put(item)
    assert _taken(inbox) == [Item(2, "a; b"), Item(3)]


def test_wait_loses_nothing_and_close_lets_the_reader_go():
    inbox, numbers = Inbox(1, "wait"), []
    reader = threading.Thread(target=lambda: [inbox.put(Item(n)) for n in range(20)])
    reader.start()
    while len(numbers) < 10:
        if (item := inbox.take()) is not None:
            numbers.append(item.number)
    inbox.close()
    reader.join(5)
    assert not reader.is_alive()
    assert numbers == list(range(10))
    assert inbox.dropped == 0
    assert inbox.take() is None


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"`size` \(=0\) must be at least 1"):
        Inbox(0)
    with pytest.raises(ValueError, match=r"`policy` \(='random'\) must be one of newest"):
        Inbox(1, "random")
