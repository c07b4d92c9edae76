"""What a worker with room asks the store: which stages are ready, in which order, and who should stop.

The order: priority first; within one priority users share alike (`lending.share`, the least first); a user's own
stages by how long they have been ready. It is read along an index, group by group, only as far as it is asked
for: 100,000 ready stages cost no more than ten. Only reads; a stage listed here may be gone by the time it is
claimed, and `stages.claim` decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, func, literal_column, or_, select
from sqlalchemy.orm import Session

from engine.plan.stage import Needs
from engine.store.columns import table_of
from engine.store.tables import Run, Stage, StageId
from engine.store.transitions import ENDED, StageStatus

_PAGE = 16
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Waiting:
    """A stage that may be claimed now, and what it needs."""

    stage_id: StageId
    run_id: UUID
    name: str
    needs: Needs
    queue: str = "default"
    priority: int = 0
    user: str = ""
    ready_at: datetime = _LONG_AGO
    alone: bool = False
    """Workers died under it: it takes a worker that runs nothing else, and keeps it for itself."""
    nodes: int = 1
    """So many workers have to have what it needs, at once."""
    attempt: int = 0
    """Of its newest attempt; 0 before the first."""

    @property
    def place(self) -> Place:
        """Its place among the stages of its user and priority."""
        return self.ready_at, self.stage_id

    def before(self, other: Waiting) -> bool:
        """Whether it comes first, whoever's they are: one order for all, so that no two wait for each other."""
        return (-self.priority, *self.place) < (-other.priority, *other.place)


Place = tuple[datetime, StageId]
More = Callable[[Waiting], list[Waiting]]
"""The page after a stage."""


class Line:
    """The stages that are ready, as they come up for one worker; `line` reads them from the store."""

    def __init__(
        self,
        groups: Iterable[Group],
        *,
        share: Callable[[str, Needs], float] = lambda user, more: 0.0,
        first: Waiting | None = None,
        busy: Collection[StageId] = (),
    ) -> None:
        """`share(user, more)` is what a user would hold of the cluster with `more` on top: asked where it matters.

        `first` comes before all others of its priority. `busy` are left out.
        """
        self._share, self._first = share, first
        self._out = {*busy} | ({first.stage_id} if first is not None else set())
        self._taken: dict[str, Needs] = {}
        self._classes: dict[int, dict[str, list[Group]]] = {} if first is None else {first.priority: {}}
        for group in groups:
            self._classes.setdefault(group.priority, {}).setdefault(group.user, []).append(group)
        self._priorities = sorted(self._classes, reverse=True)

    def next(self, largest: Needs) -> Waiting | None:
        """The next stage that needs no more than `largest`; None where there is none.

        Who got a stage counts as holding it from then on, so that several users take turns within one look.
        """
        for priority in self._priorities:
            stage = self._take_first(priority, largest) or self._take_best(self._classes[priority], largest)
            if stage is not None:
                self._taken[stage.user] = self._taken.get(stage.user, Needs()) + stage.needs
                return stage
        return None

    def _take_first(self, priority: int, largest: Needs) -> Waiting | None:
        first = self._first
        if first is None or first.priority < priority or not first.needs.within(largest):
            return None
        self._first = None
        return first

    def _take_best(self, users: Mapping[str, Sequence[Group]], largest: Needs) -> Waiting | None:
        """The next stage of one priority: of the user who holds least; of several, the one that waits longest."""
        fitting = {user: [group for group in groups if group.may_have(largest)] for user, groups in users.items()}
        alone = sum(map(bool, fitting.values())) < 2
        nothing = Needs()
        ranked = sorted(
            (
                0.0 if alone else self._share(user, self._taken.get(user, nothing)),
                min(group.place for group in groups),
                user,
            )
            for user, groups in fitting.items()
            if groups
        )
        for _, _, user in ranked:
            groups = fitting[user]
            while groups:
                best = min(groups, key=lambda group: group.place)
                if best.knows_head(self._out):
                    return best.pop()
                if not best.has_head(self._out):  # reads on; another group's may turn out to be earlier
                    groups.remove(best)
        return None


class Group:
    """Ready stages of one queue, priority, user and size, longest ready first, fetched a page at a time."""

    def __init__(self, first: Waiting, more: More, *, due: bool = True) -> None:
        """`first` is its first stage, whether it is `due` or still backs off."""
        self.priority, self.user, self._needs, self._more = first.priority, first.user, first.needs, more
        self._page: deque[Waiting] = deque([first] if due else [])
        self._place, self._last, self._over = first.place, first, False

    @property
    def place(self) -> Place:
        """Where its next stage stands among those of its user and priority, as far as is known."""
        return self._page[0].place if self._page else self._place

    def may_have(self, largest: Needs) -> bool:
        """Whether it is worth looking for a stage of at most this size."""
        if not self._needs.within(largest):
            return False
        if not self._page:  # where it goes on has to be known
            self._turn()
        return bool(self._page) or not self._over

    def knows_head(self, out: Collection[StageId]) -> bool:
        """Whether its next stage, one that is not in `out`, has been read."""
        return bool(self._page) and self._page[0].stage_id not in out

    def has_head(self, out: Collection[StageId]) -> bool:
        """Whether there is another stage that is not in `out`; if so, `pop` gives it."""
        while True:
            while self._page and self._page[0].stage_id in out:
                self._page.popleft()
            if self._page or self._over:
                return bool(self._page)
            self._turn()

    def _turn(self) -> None:
        """On to the next page."""
        if not self._over:
            self._page.extend(self._more(self._last))
            self._over = len(self._page) < _PAGE
            self._last = self._page[-1] if self._page else self._last

    def pop(self) -> Waiting:
        stage = self._page.popleft()
        self._place = stage.place
        return stage


def line(session: Session, *, queues: Sequence[str], now: datetime, run_id: UUID | None = None, **order: Any) -> Line:
    """The line in these queues, or that of one run, whatever queues its stages are in. `order` is `Line`'s.

    Valid while the session is open.
    """
    if run_id is None:
        return Line(_groups(session, queues, now), **order)
    rows = session.execute(_OF_RUN, {"run": run_id, "now": now})
    return Line(grouped([waiting_of(row) for row in rows]), **order)


def ready(session: Session, *, limit: int = 50, **of: Any) -> list[Waiting]:
    """The first `limit` stages of a `line`, whatever they need."""
    stages = line(session, **of)
    found: list[Waiting] = []
    while len(found) < limit and (stage := stages.next(_ANYTHING)) is not None:
        found.append(stage)
    return found


def grouped(stages: Iterable[Waiting]) -> list[Group]:
    """Groups of stages that are all in memory."""
    found: dict[tuple[int, str, Needs], list[Waiting]] = {}
    for stage in sorted(stages, key=lambda stage: stage.place):
        found.setdefault((stage.priority, stage.user, stage.needs), []).append(stage)
    return [Group(members[0], _slices(members)) for members in found.values()]


def _slices(members: list[Waiting]) -> More:
    def more(last: Waiting) -> list[Waiting]:
        start = members.index(last) + 1
        return members[start : start + _PAGE]

    return more


_ANYTHING = Needs(2**31, 2**31)
_S = table_of(Stage)
WAITING_COLUMNS = (
    *(_S.c.id, _S.c.run_id, _S.c.name, _S.c.slots, _S.c.gpus),
    *(_S.c.queue, _S.c.priority, _S.c.user, _S.c.ready_at, _S.c.alone, _S.c.nodes, _S.c.attempt),
)
# Spelled out in the statement: with a parameter in its place neither database would use the index of ready stages.
READY = literal_column(f"'{StageStatus.READY}'", _S.c.status.type)
_DUE = or_(_S.c.not_before.is_(None), _S.c.not_before <= bindparam("now", type_=_S.c.not_before.type))
_SIZE = (_S.c.priority, _S.c.user, _S.c.gpus, _S.c.slots)


def _heads() -> Any:
    """One stage of every group in a queue: each found from the one before by seeks in the index (a loose scan)."""
    s = _S.alias("s")
    size = (s.c.priority, s.c.user, s.c.gpus, s.c.slots)
    chosen = select(s.c.id).where(s.c.status == READY, s.c.queue == bindparam("queue"))
    chosen = chosen.order_by(*size, s.c.ready_at, s.c.id).limit(1)
    head = (*WAITING_COLUMNS, _S.c.not_before)
    group = select(*head).where(_S.c.id == chosen.scalar_subquery()).cte("heads", recursive=True)
    before = (group.c.priority, group.c.user, group.c.gpus, group.c.slots)
    # Not a comparison of tuples: of that SQLite seeks the first column alone.
    larger = [
        chosen.where(
            *(mine == theirs for mine, theirs in zip(size[:equal], before[:equal], strict=True)),
            size[equal] > before[equal],
        )
        .correlate(group)
        .scalar_subquery()
        for equal in (3, 2, 1, 0)
    ]
    group = group.union_all(select(*head).join(group, _S.c.id == func.coalesce(*larger)))
    return select(*(group.c[column.name] for column in head))


_HEADS = _heads()
_OF_GROUP = (
    select(*WAITING_COLUMNS)
    .where(_S.c.status == READY, _S.c.queue == bindparam("queue"), _S.c.priority == bindparam("priority"))
    .where(_S.c.user == bindparam("user"), _S.c.gpus == bindparam("gpus"), _S.c.slots == bindparam("slots"))
    .where(_DUE)
    .order_by(_S.c.ready_at, _S.c.id)
    .limit(_PAGE)
)
_SINCE = bindparam("since", type_=_S.c.ready_at.type)
_AS_LONG = _OF_GROUP.where(_S.c.ready_at == _SINCE, _S.c.id > bindparam("after", type_=_S.c.id.type))
_LESS_LONG = _OF_GROUP.where(_S.c.ready_at > _SINCE)
_OF_RUN = (
    select(*WAITING_COLUMNS)
    .where(_S.c.run_id == bindparam("run"), _S.c.status == StageStatus.READY, _DUE)
    .order_by(_S.c.ready_at, _S.c.id)
)


def _groups(session: Session, queues: Sequence[str], now: datetime) -> list[Group]:
    return [
        Group(
            waiting_of(row),
            _pages(
                session,
                {"queue": queue, "now": now}
                | {name: getattr(row, name) for name in ("priority", "user", "gpus", "slots")},
            ),
            due=row.not_before is None or row.not_before <= now,
        )
        for queue in queues
        for row in session.execute(_HEADS, {"queue": queue}).all()
    ]


def _pages(session: Session, group: Mapping[str, Any]) -> More:
    def more(last: Waiting) -> list[Waiting]:
        after = {**group, "since": last.ready_at, "after": last.stage_id}
        found = [waiting_of(row) for row in session.execute(_AS_LONG, after)]
        if len(found) < _PAGE:
            found += [waiting_of(row) for row in session.execute(_LESS_LONG, after)]
        return found

    return more


def waiting_of(row: Any) -> Waiting:
    """A row of stages, with at least `WAITING_COLUMNS`."""
    return Waiting(
        stage_id=StageId(row.id),
        run_id=row.run_id,
        name=row.name,
        needs=Needs(row.slots, row.gpus),
        queue=row.queue,
        priority=row.priority,
        user=row.user,
        ready_at=row.ready_at,
        alone=row.alone,
        nodes=row.nodes,
        attempt=row.attempt,
    )


def stop_requested(session: Session, run_id: UUID) -> float | None:
    """Seconds that the run's stages have for a checkpoint since somebody asked it to stop; None where nobody did."""
    return session.scalar(select(Run.stop_grace_s).where(Run.id == run_id, Run.stop_requested))


def names(session: Session, run_id: UUID) -> list[str]:
    """The queues that the run's stages wait in."""
    return list(session.scalars(select(Stage.queue).where(Stage.run_id == run_id).distinct().order_by(Stage.queue)))


def over(session: Session, run_ids: Collection[UUID]) -> bool:
    """Whether every one of these runs has ended."""
    ended = [str(status) for status in ENDED[Run]]
    alive = select(Run.id).where(Run.id.in_(list(run_ids)), Run.status.not_in(ended)).limit(1)
    return session.scalar(alive) is None
