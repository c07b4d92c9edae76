"""Certificates of `rlx verify-resume`: which method, in which version of the code, resumes bit for bit.

How one comes about is the command line's business; here they are kept, found for a run, and put into a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.store.tables import Certificate, RunId, Stage
from engine.store.values import storable_json

Verdict = Literal["identical", "parted", "failed"]
"""The disturbed run did what the undisturbed one did; it did something else; it did not get to its end."""

_JSON = ("versions", "code", "packages", "hardware", "detail")


@dataclass(frozen=True)
class Finding:
    """What a verification found; see `tables.Certificate` for its fields."""

    method: str
    versions: Mapping[str, int]
    spec: str
    spec_hash: str
    outcome: Verdict
    kills: int
    seed: int
    weights_sha256: str | None
    code: Mapping[str, Any]
    packages: Mapping[str, str]
    hardware: Mapping[str, Any]
    detail: Mapping[str, Any]
    created_at: datetime

    def as_data(self) -> dict[str, Any]:
        """What `--json` says."""
        return asdict(self)


def record(session: Session, finding: Finding) -> None:
    """Keep a certificate; those before it stay."""
    values = finding.as_data()
    session.add(Certificate(**values | {name: storable_json(values[name]) for name in _JSON}))


def for_run(session: Session, run_id: RunId, *, method: str, code: Mapping[str, Any]) -> Finding | None:
    """The newest certificate of the run's method at its stages' versions, one of its very code before any other."""
    rows = session.execute(select(Stage.kind, Stage.version).where(Stage.run_id == run_id))
    versions = {row.kind: row.version for row in rows}
    certificates = session.scalars(
        select(Certificate)
        .where(Certificate.method == method)
        .order_by(Certificate.created_at.desc(), Certificate.id.desc())
    )
    found = [_finding(row) for row in certificates if _agree(row.versions, versions)]
    mine = [finding for finding in found if same_code(finding.code, code)]
    return next(iter([*mine, *found]), None)


def same_code(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records of our code name one version, commit and uncommitted change."""
    keys = ("version", "commit", "diff_sha256")
    return [one.get(key) for key in keys] == [other.get(key) for key in keys]


def in_words(finding: Finding, code: Mapping[str, Any]) -> str:
    """The certificate in one line, for a run of `code`: `resume verified: 6 kills, identical`."""
    kills = f"{finding.kills} kill{'s' * (finding.kills != 1)}"
    if finding.outcome == "identical":
        told = f"resume verified: {kills}, identical"
    else:
        told = f"resume not verified: {kills}, {finding.outcome}"
        told += f" at {finding.detail['where']}" if finding.detail.get("where") else ""
    if same_code(finding.code, code):
        return told
    version, commit = finding.code.get("version"), finding.code.get("commit")
    return f"{told} (by other code: {version}{f' at {commit[:7]}' if commit else ''})"


def _agree(certified: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    """Whether every kind of stage that the run has was certified at the run's version of it."""
    return all(certified.get(kind) == version for kind, version in wanted.items())


def _finding(row: Certificate) -> Finding:
    return Finding(**{name: getattr(row, name) for name in Finding.__dataclass_fields__})
