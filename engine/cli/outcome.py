"""How a run ended, in words: its scores and what to type next, or why it failed and what to do about that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from engine.cli.output import path, printable, seconds, status, style, talk

if TYPE_CHECKING:
    from engine.cli.following import Followed
    from engine.store.session import Database
    from engine.store.tables import RunId

TAIL_LINES = 20

NEXT_STEPS = {
    "oom": "Give it less to hold (smaller batches, fewer candidates) or more memory, then: rlx resume {handle}",
    "hang": "It stopped making progress; the log has the stacks. Then: rlx resume {handle}",
    "reward_error": "Correct the function in the spec, then submit it again: what is unchanged comes from the cache",
    "data_error": "Correct the data, then submit the spec again: what is unchanged comes from the cache",
    "spec_error": "Correct the spec, then submit it again: what is unchanged comes from the cache",
    "service_down": "See to the service, then: rlx resume {handle}",
    "disk": "Free some space (`rlx doctor` says how much is left), then: rlx resume {handle}",
    "lost": "Its worker died. Go on from the last checkpoint with: rlx resume {handle}",
    "preempted": "Go on from the last checkpoint with: rlx resume {handle}",
    "import": "Install what is missing (`rlx doctor` lists it), then: rlx resume {handle}",
    "internal": "The whole log: rlx logs {handle}. Once it is cured: rlx resume {handle}",
}
"""What to do about each cause."""
QUARANTINED = (
    "Look at what the stage does to its machine (memory, GPU, processes) and mend that; release it with: "
    "rlx resume {handle}"
)


def tell(db: Database, run_id: RunId, followed: Followed) -> None:
    """Say on stderr how the followed run ended."""
    from engine.cli import rows
    from engine.clock import utc_now
    from engine.store import runs

    now = utc_now()
    with db.read() as session:
        run = runs.get(session, run_id)
        head = rows.run_row(run, now)
        stages = rows.stage_rows(session, run, now)
        evaluations = rows.evaluation_rows(session, run)
        checkpoints = rows.checkpoint_rows(session, run)
        events = rows.event_rows(session, run)
    handle = head["handle"]
    talk()
    if followed.lost is not None:
        talk(f"{style('error:', 'red', bold=True, err=True)} {followed.lost}")
        talk(f"Go on from the last checkpoint with: rlx resume {handle}")
        return
    talk(f"{handle} {status(head['status'], err=True)} in {seconds(head['seconds'])}")
    if head["status"] == "failed":
        for line in failure_lines(handle, rows.failure(stages, events), err=True):
            talk(line)
        return
    for line in score_lines(rows.summaries(evaluations)):
        talk(line)
    best = next(
        (row for row in reversed(checkpoints) if "best" in row["labels"]), checkpoints[-1] if checkpoints else None
    )
    if best is not None:
        talk(f"checkpoint  {path(best['uri'])}")
    if head["status"] == "succeeded":
        talk(f"next        rlx show {handle} · rlx samples {handle} · rlx dashboard")
    else:
        talk(f"next        rlx resume {handle}")


def score_lines(summaries: list[dict[str, Any]]) -> list[str]:
    """A small table: what each metric was before training, at its best and at the end."""
    if not summaries:
        return []
    heads = ("metric", "split", "untrained", "best", "last")
    lines = [
        heads,
        *((row["metric"], row["split"], *(_score(row[key]) for key in ("first", "best", "last"))) for row in summaries),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _score(standing: dict[str, Any] | None) -> str:
    if standing is None:
        return "-"
    return f"{standing['mean']:.3f} [{standing['low']:.3f}, {standing['high']:.3f}] at {standing['step']}"


def failure_lines(handle: str, failure: dict[str, Any] | None, *, err: bool = False) -> list[str]:
    """Why a run failed: stage, cause, error and what led to it, stacks, the log's end, and the next step."""
    if failure is None:
        return []
    emphasise: Callable[[str], str] = lambda text: style(text, "red", bold=True, err=err)  # noqa: E731
    lines = [
        f"{emphasise(str(failure['cause'] or 'internal'))} in stage {failure['stage']}, attempt {failure['attempt']}"
    ]
    lines += [f"  {line}" for line in printable(failure["error"] or "").splitlines()]
    if failure["earlier"]:
        lines.append(f"before      {', '.join(failure['earlier'])}")
    detail = failure["detail"]
    lines += [f"because     {link['type']}: {printable(link['message'])}" for link in detail.get("chain") or ()]
    lines += _standing(detail.get("stacks") or ())
    lines += [f"event       {event['kind']}: {printable(event['message'])}" for event in failure["events"]]
    tail = printable(failure["log_tail"] or "").splitlines()[-TAIL_LINES:]
    if tail:
        lines += ["log", *(f"  {line}" for line in tail)]
    if failure["log_path"]:
        lines.append(f"whole log   {path(failure['log_path'])}")
    hint = QUARANTINED if "quarantine" in detail else NEXT_STEPS.get(failure["cause"] or "", NEXT_STEPS["internal"])
    lines.append(f"what to do  {hint.format(handle=handle)}")
    return lines


def _standing(stacks: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each process of a stage that hung: where it stood. The whole stacks are in the log."""
    lines = []
    for process in stacks:
        frames = [*process["stacks"].splitlines(), *process["threads"]]
        where = next(
            (line.strip() for line in frames if line.strip().startswith(("File ", "thread "))), process["state"]
        )
        lines.append(printable(f"stood at    {process['pid']} {process['command'][:60]}: {where}"))
    return lines
