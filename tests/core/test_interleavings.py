"""Every order of the statements of two clients on PostgreSQL, and of three for acquire, release and a grant pass.

How the orders are played, and which are left out because they come to what was there before: see `stage`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from penstock.claim import Claim, ClaimKind
from penstock.rules import Demand, Source
from penstock.store import postgresql
from penstock.store.contract import ClaimState, Mode, Outcome, Owner, Result, Session
from penstock.store.sql import SqlStore
from stage import Played, Stage, stage
from standing import StandingStores, standing_stores

A, B = "pool:a", "pool:b"
HOLDING = (ClaimState.GRANTED, ClaimState.HELD)
Work = Callable[[SqlStore], Any]


@pytest.fixture(scope="module")
def stores(postgresql_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingStores]:
    with standing_stores("postgresql", lambda _: postgresql_url, tmp_path_factory.mktemp("stage")) as stores:
        yield stores


@pytest.fixture(scope="module")
def three(stores: StandingStores) -> Iterator[Stage]:
    with stage(stores.given_url, 3) as three:
        yield three
    print(f"{three.schedules} orders in all")


class Scene:
    """The store before the curtain rises: sessions `s0`, `s1`, `s2`, and what tests put there."""

    def __init__(self, stores: StandingStores, three: Stage, told: Callable[[str], None]) -> None:
        self.store, self._stage, self._told = stores.empty(), three, told
        self.version = 0
        for number in range(3):
            self.store.open_session(Session(f"s{number}", "process", "d", 1, "h", 30.0))

    def settle(self, key: str, capacity: int | None) -> None:
        assert self.store.settle(key, capacity, Source.EXPLICIT, version=self.version)

    def demands(self, capacities: dict[str, int | None], wants: dict[str, int]) -> list[Demand]:
        return [Demand(key, slots, capacities[key], Source.EXPLICIT) for key, slots in wants.items()]

    def play(self, *works: Work, excess: int = 0, check: Callable[[Played], None] | None = None) -> None:
        """Every order; at the end of each, one more poll, and nobody may be left who has room."""

        def both(played: Played) -> None:
            if check is not None:
                check(played)
            self.store.grant_pass()
            self.check()

        orders = self._stage.play(works, both, excess=excess, clock_shift=self.store.clock_shift)
        self._told(f"{orders} orders")

    def check(self) -> None:
        """All or none, a holder for every slot, and room for nobody who waits."""
        snapshot = self.store.snapshot()
        room = {row.key: None if row.capacity is None else row.capacity - row.held for row in snapshot.limits}
        for row in snapshot.claims:
            has = Counter(slot.limit for slot in row.slots)
            assert has == (Counter(row.wants) if row.state in HOLDING else Counter()), row
            barred = [key for key, slots in row.wants.items() if (free := room[key]) is not None and free < slots]
            assert row.state is not ClaimState.WAITING or barred, f"{row} waits, though there is room"
        held = sum(len(row.slots) for row in snapshot.claims)
        assert sum(row.held for row in snapshot.limits) == held, "a slot is held by nobody"

    def one_wins(self, _: Played) -> None:
        """Of those that asked exactly one was let in. One that waits may have been granted meanwhile by the other."""
        assert [state in HOLDING for state in self.states().values()].count(True) == 1, self.states()

    def states(self) -> dict[str, ClaimState]:
        return {row.claim.claim_id: row.state for row in self.store.snapshot().claims}


@pytest.fixture
def scene(
    stores: StandingStores, three: Stage, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Scene:
    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {text}", end="")

    return Scene(stores, three, tell)


def acquire(name: str, session: int, *demands: Demand, mode: Mode = Mode.WAIT, version: int = 0) -> Work:
    claim = Claim(kind=ClaimKind.OP, host="process", deployment="d", claim_id=name)
    owner = Owner(f"s{session}")

    def work(store: SqlStore) -> Outcome:
        return store.acquire(claim, demands, version=version, owner=owner, mode=mode)

    return work


def release(name: str, session: int) -> Work:
    return lambda store: store.release(name, f"s{session}")


def a(slots: int = 1, capacity: int | None = 1) -> Demand:
    return Demand(A, slots, capacity, Source.EXPLICIT)


def b(slots: int = 1, capacity: int | None = 1) -> Demand:
    return Demand(B, slots, capacity, Source.EXPLICIT)


def result_of(played: Played, client: int) -> Result:
    """What an acquire or a touch came to."""
    outcome: Outcome = played.results[client]
    return outcome.result


# -- coming and going --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", [(Mode.WAIT, Mode.WAIT), (Mode.TRY, Mode.TRY), (Mode.WAIT, Mode.TRY)])
def test_of_two_that_ask_with_room_for_one_exactly_one_wins(scene: Scene, modes: tuple[Mode, Mode]) -> None:
    scene.settle(A, 1)
    scene.play(acquire("x", 0, a(), mode=modes[0]), acquire("y", 1, a(), mode=modes[1]), check=scene.one_wins)


def test_of_two_that_are_decided_exactly_one_wins(scene: Scene) -> None:
    """Somebody who asks for more than there is waits before them: so one statement does not do."""
    scene.settle(A, 2)
    acquire("x", 2, a(capacity=2))(scene.store)
    acquire("w", 2, a(2, 2))(scene.store)

    def one(played: Played) -> None:
        assert sorted(outcome.result for outcome in played.results) == [Result.HELD, Result.NO_ROOM]

    y, z = (acquire(name, n, a(capacity=2), mode=Mode.TRY) for n, name in enumerate("yz"))
    scene.play(y, z, check=one)


@pytest.mark.parametrize("modes", [(Mode.WAIT, Mode.WAIT), (Mode.TRY, Mode.TRY), (Mode.WAIT, Mode.TRY)])
def test_of_two_that_ask_for_several_limits_in_opposite_order_exactly_one_wins(
    scene: Scene, modes: tuple[Mode, Mode]
) -> None:
    scene.settle(A, 1)
    scene.settle(B, 2)
    x, y = acquire("x", 0, a(), b(capacity=2), mode=modes[0]), acquire("y", 1, b(capacity=2), a(), mode=modes[1])
    scene.play(x, y, check=scene.one_wins)


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.TRY])
def test_acquire_and_release(scene: Scene, mode: Mode, waiting: bool) -> None:
    scene.settle(A, 1)
    acquire("x", 0, a())(scene.store)
    if waiting:
        acquire("w", 2, a())(scene.store)

    def in_order(played: Played) -> None:
        if waiting:
            scene.store.grant_pass()
            assert scene.states()["w"] is ClaimState.GRANTED
            assert result_of(played, 0) is not Result.HELD

    scene.play(acquire("y", 1, a(), mode=mode), release("x", 0), check=in_order)


def test_release_and_a_grant_pass(scene: Scene) -> None:
    scene.settle(A, 2)
    acquire("x", 0, a(2, 2))(scene.store)
    for name in ("v", "w"):
        acquire(name, 2, a(capacity=2))(scene.store)
    scene.play(release("x", 0), lambda store: store.grant_pass())


def test_two_release_what_one_waits_for(scene: Scene) -> None:
    scene.settle(A, 2)
    for number in range(2):
        acquire(f"x{number}", number, a(capacity=2))(scene.store)
    acquire("w", 2, a(2, 2))(scene.store)
    scene.play(release("x0", 0), release("x1", 1))


def test_a_release_that_is_sent_twice(scene: Scene) -> None:
    scene.settle(A, 1)
    acquire("x", 0, a())(scene.store)

    def once(played: Played) -> None:
        assert sorted(played.results) == [False, True]

    scene.play(release("x", 0), release("x", 0), check=once)


def test_a_release_that_overtakes_its_acquire(scene: Scene) -> None:
    scene.settle(A, 1)

    def gone(_: Played) -> None:
        assert scene.states() == {}

    scene.play(acquire("x", 0, a()), release("x", 0), check=gone)


def test_an_acquire_that_is_sent_twice(scene: Scene) -> None:
    scene.settle(A, 2)

    def same(played: Played) -> None:
        assert {outcome.result for outcome in played.results} == {Result.HELD}
        assert played.results[0].slots == played.results[1].slots

    scene.play(acquire("x", 0, a(capacity=2)), acquire("x", 0, a(capacity=2)), check=same)


def test_acquire_release_and_a_grant_pass(scene: Scene) -> None:
    scene.settle(A, 1)
    acquire("x", 0, a())(scene.store)
    acquire("w", 2, a())(scene.store)
    scene.play(acquire("y", 1, a()), release("x", 0), lambda store: store.grant_pass())


# -- speaking up -------------------------------------------------------------------------------------------------------


def granted(scene: Scene) -> Work:
    """Somebody has been granted and has not heard of it; its work is to speak up."""
    scene.settle(A, 1)
    acquire("x", 0, a())(scene.store)
    acquire("w", 1, a())(scene.store)
    scene.store.release("x", "s0")
    assert scene.states()["w"] is ClaimState.GRANTED
    return touch("w", 1)


def touch(name: str, session: int) -> Work:
    owner = Owner(f"s{session}")
    return lambda store: store.touch(name, [a()], version=0, owner=owner)


def test_who_speaks_up_while_it_is_parked_holds_or_waits(scene: Scene) -> None:
    speak_up = granted(scene)
    scene.store.clock_shift += 3_000_000

    def told(played: Played) -> None:
        states = {Result.HELD: (ClaimState.HELD,), Result.WAITING: (ClaimState.WAITING, ClaimState.GRANTED)}
        assert scene.states()["w"] in states[result_of(played, 0)]

    scene.play(speak_up, lambda store: store.sweep(), check=told)


def test_who_speaks_up_while_it_is_ended(scene: Scene) -> None:
    speak_up = granted(scene)

    def gone(played: Played) -> None:
        assert played.results[1] is True
        assert "w" not in scene.states()
        assert result_of(played, 0) in (Result.HELD, Result.ENDED)

    scene.play(speak_up, lambda store: store.end("w", reason="by force"), check=gone)


def test_who_speaks_up_while_it_is_handed_over(scene: Scene) -> None:
    speak_up = granted(scene)

    def hand_over(store: SqlStore) -> bool:
        return store.hand_over("w", "s1", ticket_seconds=60.0)

    def told(played: Played) -> None:
        assert result_of(played, 0) is Result.HELD
        assert played.results[1] is True

    scene.play(speak_up, hand_over, check=told)


def test_of_two_that_adopt_a_ticket_one_has_it(scene: Scene) -> None:
    scene.settle(A, 1)
    acquire("w", 0, a())(scene.store)
    scene.store.hand_over("w", "s0", ticket_seconds=60.0)

    def one(played: Played) -> None:
        assert sorted(outcome.result for outcome in played.results) == [Result.BUSY, Result.HELD]

    scene.play(touch("w", 1), touch("w", 2), check=one)


def test_a_beat_while_its_session_is_reaped(scene: Scene) -> None:
    scene.settle(A, 1)
    acquire("x", 0, a())(scene.store)
    acquire("w", 1, a())(scene.store)
    scene.store.clock_shift += 34_000_000
    for number in (1, 2):
        scene.store.beat(f"s{number}", lambda: {"w"})

    def told(played: Played) -> None:
        assert ("x" in scene.states()) is played.results[0]

    scene.play(lambda store: store.beat("s0", lambda: {"x"}), lambda store: store.sweep(), check=told)


def test_a_release_while_its_session_is_reaped(scene: Scene) -> None:
    scene.settle(A, 1)
    acquire("x", 0, a())(scene.store)
    scene.store.clock_shift += 34_000_000
    for number in (1, 2):
        scene.store.beat(f"s{number}", frozenset)
    scene.play(release("x", 0), lambda store: store.sweep())


def test_a_run_is_joined_while_its_last_member_leaves(scene: Scene) -> None:
    scene.settle(A, 1)

    def run(name: str, session: int) -> Work:
        claim = Claim(kind=ClaimKind.RUN, host="process", deployment="d", run_id="r", claim_id=name)
        return lambda store: store.acquire(claim, [a()], version=0, owner=Owner(f"s{session}"))

    run("first", 0)(scene.store)

    def told(played: Played) -> None:
        if result_of(played, 0) is Result.HELD:
            assert scene.states() == {played.results[0].claim_id: ClaimState.HELD}

    scene.play(run("second", 1), release("first", 0), check=told)


# -- limits ------------------------------------------------------------------------------------------------------------


def set_limit(capacity: int | None, key: str = A, version: int = 0) -> Work:
    return lambda store: store.settle(key, capacity, Source.EXPLICIT, version=version)


@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.TRY])
@pytest.mark.parametrize("capacity", [0, 1, 3, None])
def test_acquire_while_the_limit_changes(scene: Scene, capacity: int | None, mode: Mode) -> None:
    """Under the new version: who asked under the old one is stale."""
    scene.settle(A, 2)
    acquire("x", 0, a(capacity=2))(scene.store)

    def change(store: SqlStore) -> None:
        version = store.configure({}, expected_version=0, by="me", origin="here")
        assert set_limit(capacity, version=version)(store)

    def in_line(played: Played) -> None:
        (row,) = scene.store.limit_rows()
        assert row.capacity == capacity
        stale = result_of(played, 0) is Result.STALE
        assert ("y" in scene.states()) is (not stale)

    scene.play(acquire("y", 1, a(capacity=2), mode=mode), change, check=in_line, excess=2)


def test_acquire_while_the_limit_closes(scene: Scene) -> None:
    scene.settle(A, 1)
    scene.play(acquire("x", 0, a()), set_limit(0), excess=1)


def test_release_while_the_limit_shrinks(scene: Scene) -> None:
    scene.settle(A, 2)
    for number in range(2):
        acquire(f"x{number}", number, a(capacity=2))(scene.store)
    acquire("w", 2, a(capacity=2))(scene.store)
    scene.play(release("x0", 0), set_limit(1), excess=2)


def test_two_see_a_limit_first(scene: Scene) -> None:
    scene.play(acquire("x", 0, a()), acquire("y", 1, a()), check=scene.one_wins)


def test_a_limit_is_settled_while_it_is_first_seen(scene: Scene) -> None:
    scene.play(acquire("x", 0, a(capacity=1)), set_limit(1))


def test_an_idle_limit_is_collected_while_it_is_asked_for(scene: Scene) -> None:
    scene.settle(A, 1)
    scene.store.clock_shift += 10_000_000
    later = scene.store.snapshot_time()

    def held(played: Played) -> None:
        assert result_of(played, 0) is Result.HELD
        assert [(row.key, row.held) for row in scene.store.limit_rows()] == [(A, 1)]

    collect = lambda store: store.prune(history_before=0, idle_before=later)  # noqa: E731
    scene.play(acquire("x", 0, a()), collect, check=held)


# -- the stage itself --------------------------------------------------------------------------------------------------


def test_a_guard_that_is_left_out_is_noticed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The acquire without its lock on the slots that it picks, while these are about to go."""
    whole = postgresql.acquire_statement

    def unlocked(**kind: bool) -> str:
        text = whole(**kind)
        assert text.count("FOR UPDATE SKIP LOCKED") == 1
        return text.replace("FOR UPDATE SKIP LOCKED", "")

    monkeypatch.setattr(postgresql, "acquire_statement", unlocked)
    with pytest.raises(AssertionError, match="in order"):
        test_acquire_while_the_limit_closes(scene)
