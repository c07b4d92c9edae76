"""What a run's policy wrote, read from the store: samples, and the candidates that each decision chose from.

Rows as frozen dataclasses; nothing of Streamlit. All of the text is a model's: pages show it as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from engine.store import samples
from engine.store.tables import RunId, Sample


@dataclass(frozen=True)
class Candidate:
    """One utterance that a decision could have taken."""

    text: str
    q: float | None
    chosen: bool


@dataclass(frozen=True)
class SampleRow:
    """One sample in a list."""

    id: int
    step: int
    kind: str
    split: str
    item: int | None
    score: float | None
    text: str


@dataclass(frozen=True)
class SampleDetail(SampleRow):
    """One sample with all that was recorded of it."""

    decisions: tuple[tuple[Candidate, ...], ...]
    rest: Mapping[str, Any]
    """What else the method wrote beside it."""


def find_samples(
    session: Session,
    run_id: RunId,
    *,
    split: str | None = None,
    step: int | None = None,
    containing: str = "",
    order: str = "newest",
    limit: int = 200,
) -> list[SampleRow]:
    """Samples of the run: the newest, or those with the best or the worst scores, first."""
    orders: dict[str, Sequence[Any]] = {
        "newest": (Sample.step.desc(), Sample.id),
        "best": (Sample.score.desc(), Sample.step.desc(), Sample.id),
        "worst": (Sample.score.asc(), Sample.step.desc(), Sample.id),
    }
    chosen = select(Sample).where(Sample.run_id == run_id).order_by(*orders[order]).limit(limit)
    if order != "newest":
        chosen = chosen.where(Sample.score.is_not(None))
    if split is not None:
        chosen = chosen.where(Sample.split == split)
    if step is not None:
        chosen = chosen.where(Sample.step == step)
    if containing:
        chosen = chosen.where(Sample.text.icontains(containing, autoescape=True))
    return [
        SampleRow(row.id, row.step, row.kind, row.split, row.item, row.score, row.text)
        for row in session.scalars(chosen)
    ]


def sample(session: Session, run_id: RunId, sample_id: int) -> SampleDetail | None:
    """One sample of this run with its candidates; None if it is not there."""
    row = session.scalars(select(Sample).where(Sample.id == sample_id, Sample.run_id == run_id)).one_or_none()
    if row is None:
        return None
    decisions = tuple(tuple(_candidates(step)) for step in row.data.get("steps") or ())
    rest = {key: value for key, value in row.data.items() if key != "steps"}
    return SampleDetail(row.id, row.step, row.kind, row.split, row.item, row.score, row.text, decisions, rest)


def _candidates(step: Any) -> Iterable[Candidate]:
    """A decision is a list of candidates, or a mapping that has one beside other things."""
    for candidate in step.get("candidates", ()) if isinstance(step, Mapping) else step:
        q = candidate.get("q")
        yield Candidate(
            str(candidate.get("text", "")), None if q is None else float(q), bool(candidate.get("chosen", False))
        )


def sample_facets(session: Session, run_id: RunId) -> tuple[list[str], list[int], int]:
    """The splits and steps that samples were taken at, and how many samples there are."""
    splits = session.scalars(select(Sample.split).where(Sample.run_id == run_id).distinct())
    total = session.scalar(select(func.count()).select_from(Sample).where(Sample.run_id == run_id))
    return sorted(splits, key=lambda split: (split != "train", split)), samples.steps(session, run_id), total or 0
