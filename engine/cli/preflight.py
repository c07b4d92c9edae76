"""Before anything is queued: does the data read, does the model exist, and do the user's functions keep their contract.

What breaks a contract stops the submission; what looks suspicious is said and let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.cli.output import printable, style, talk
from engine.errors import ModelError, SpecError

if TYPE_CHECKING:
    from engine.cli.compiling import Compiled
    from engine.functions.process import HostProcess


def check(variants: Sequence[Compiled], *, embedded: bool, host: HostProcess | None = None) -> None:
    """Check each distinct dataset and model once; the first functions in `host`, if one was started.

    Raises SpecError, DataError or ModelError.
    """
    datasets: list[Any] = []
    models: list[str] = []
    for variant in variants:
        dataset, name = variant.loaded.resolved["dataset"], variant.loaded.experiment.model.name
        if dataset not in datasets:
            probe_functions(variant, host=None if datasets else host)
            datasets.append(dataset)
        if name not in models:
            models.append(name)
            check_model(name, embedded=embedded)


def probe_functions(variant: Compiled, *, host: HostProcess | None = None) -> None:
    """Run the user's functions on probes; warnings are told, broken contracts raised."""
    from engine.cli.compiling import located
    from engine.data.splits import split_items
    from engine.functions.preflight import chat_render, preflight
    from engine.functions.sources import Sources

    dataset = variant.loaded.resolved["dataset"]
    items = [item for rows in split_items(dataset).values() for item in rows]
    render = chat_render(dataset.get("system_prompt", ""), dataset.get("main_prompt", ""))
    report = preflight(Sources.of(dataset), items, render, starts=starts(variant), host=host)
    for warning in report.warnings:
        warn(warning)
    if (service := dataset.get("score_by")) is not None:
        warn(f"dataset.score_by: the service {service} runs beside stages alone, so its scores were not probed")
    if report.problems:
        raise SpecError([located(problem, variant.loaded.origin) for problem in report.problems])


def starts(variant: Compiled) -> dict[str, tuple[str, int]]:
    """In which file and line each function's source begins, for those written as a block: below its `|`."""
    from pathlib import Path

    from engine.functions.sources import FUNCTIONS

    dataset, found = variant.loaded.resolved["dataset"], {}
    for name in FUNCTIONS:
        where, source = variant.loaded.origin.get(f"dataset.{name}"), dataset.get(name)
        if not source or where is None or where.file is None or where.line is None:
            continue
        below = Path(where.file).read_text(encoding="utf-8").splitlines()[where.line : where.line + 1]
        if below and below[0].strip() == source.splitlines()[0].strip():
            found[name] = (where.file, where.line + 1)
    return found


def check_model(name: str, *, embedded: bool) -> None:
    """Whether a hub model or a path can be had; other forms are known from the spec alone. Raises ModelError."""
    if name.startswith(("tiny:", "scratch:", "run:")):
        return
    from engine.lm.reference import parse

    reference = parse(name)
    if reference.kind != "hub":
        return
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    cached = try_to_load_from_cache(reference.name, "config.json", revision=reference.label)
    if isinstance(cached, str):
        return
    advice = "`rlx submit SPEC --tiny` tries the spec without the model; scratch:<preset> needs no network."
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"model.name: {name!r} is not in the local cache, and HF_HUB_OFFLINE is set. {advice}")
    try:
        HfApi().model_info(reference.name, revision=reference.label, timeout=10)
    except GatedRepoError as error:
        raise ModelError(f"model.name: {name!r} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(f"model.name: the hub has no model {name!r} (or HF_TOKEN may not see it). {advice}") from error
    except (HfHubHTTPError, OSError) as error:
        said = f"model.name: {name!r} is not in the local cache, and the hub cannot be reached"
        if embedded:  # whoever loads it is this machine
            raise ModelError(f"{said}. {advice}") from error
        warn(f"{said} from here; the worker will try")


def warn(text: str) -> None:
    """Say that something looks wrong."""
    talk(f"{style('warning:', 'yellow', err=True)} {printable(text)}")
