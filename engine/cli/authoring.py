"""Commands around a spec before it runs: `init`, `validate`, `schema`, `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.arguments import Overrides, SpecFile
from engine.cli.output import answer, answer_json, status, style, talk
from engine.cli.quick import QuickCommand
from engine.errors import ExitCode


def register(root: typer.Typer) -> None:
    """Add these commands to `rlx`."""
    root.command("init", cls=QuickCommand)(init)
    root.command("validate", cls=QuickCommand)(validate)
    root.command("schema", cls=QuickCommand)(schema)
    root.command("plan", cls=QuickCommand)(plan)


def init(
    file: Annotated[Path, typer.Argument(help="Where to write the spec.")] = Path("experiment.yaml"),
    name: Annotated[str | None, typer.Option(help="Name of the experiment; by default the file's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a complete, commented spec that runs as it is.

    Beside it goes the schema from which editors complete it.
    """
    import json
    import re
    from importlib.resources import files

    from engine.errors import Refused
    from engine.methods.registry import configs
    from engine.settings import HOME_NAME
    from engine.spec.schema import json_schema

    if file.exists() and not force:
        raise Refused(f"{file} is there already: `--force` replaces it, or give another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    home = file.parent / HOME_NAME
    home.mkdir(exist_ok=True)
    (home / "schema.json").write_text(json.dumps(json_schema(configs()), indent=2) + "\n", encoding="utf-8")
    chosen = name or re.sub(r"[^a-z0-9_]+", "_", file.stem.lower()).strip("_") or "experiment"
    template = files("engine.cli").joinpath("template.yaml").read_text(encoding="utf-8")
    file.write_text(template.format(name=chosen, file=file, schema=f"{HOME_NAME}/schema.json"), encoding="utf-8")
    answer(str(file))
    talk(f"A working spec. Next: rlx submit {file}")


def validate(
    spec: SpecFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same findings as JSON.")] = False,
) -> None:
    """Report every problem of SPEC at once; runs nothing of it.

    Each with file, line and column. Exits 2 where there is one.
    """
    from engine.cli.compiling import compiled
    from engine.errors import SpecError

    try:
        variants = compiled(spec, overrides or [])
    except SpecError as error:
        if not as_json:
            raise
        answer_json({"file": str(spec), "valid": False, "problems": list(error.problems)})
        raise typer.Exit(ExitCode.BAD_INPUT) from error
    stages = [stage.name for stage in variants[0].plan.stages]
    if as_json:
        answer_json({"file": str(spec), "valid": True, "problems": [], "stages": stages, "variants": len(variants)})
        return
    several = f", {len(variants)} variants" if len(variants) > 1 else ""
    answer(f"{status('ok')}: {spec}: {variants[0].plan.name}, {' → '.join(stages)}{several}")


def schema(
    method: Annotated[str | None, typer.Argument(help="List what `algorithm` may say for this method.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Schema for METHOD too.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Every field of a spec, as a page.")] = False,
) -> None:
    """Print the JSON Schema of a spec, or what METHOD may say.

    The schema is draft-07, which YAML editors read; METHOD's keys are listed with their defaults.
    """
    from engine.methods.registry import configs
    from engine.spec.schema import json_schema

    if markdown:
        from engine.spec.reference import reference_markdown

        answer(reference_markdown(json_schema(configs())).rstrip("\n"))
        return
    if method is None:
        answer_json(json_schema(configs()))
        return
    from engine.cli.compiling import method_config

    config = method_config(method)
    if as_json:
        from engine.spec.help import WithHelp

        answer_json(config.model_json_schema(schema_generator=WithHelp))
        return
    answer(style(f"algorithm: {{name: {method}}}", None, bold=True))
    answer((config.__doc__ or "").strip())
    for key, kind, default, text in _keys(config):
        answer("")
        answer(f"{style(key, 'cyan')}: {kind} = {default}")
        if text:
            answer(f"    {text}")


def _keys(config: Any, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Every key of a config by dotted path: its type, its default, its help. Blocks are entered."""
    from engine.spec.help import field_help

    rows: list[tuple[str, str, str, str]] = []
    texts = field_help(config)
    for name, field in config.model_fields.items():
        if prefix == "" and name == "name":
            continue
        inner = field.annotation
        if hasattr(inner, "model_fields"):
            rows += _keys(inner, f"{prefix}{name}.")
            continue
        kind = getattr(inner, "__name__", None) if not getattr(inner, "__args__", None) else str(inner)
        default = "(required)" if field.is_required() else _yaml(field.get_default(call_default_factory=True))
        text = " ".join(texts.get(name, "").split())
        rows.append(
            (f"{prefix}{name}", (kind or str(inner)).replace("typing.", "").replace("NoneType", "null"), default, text)
        )
    return rows


def _yaml(value: Any) -> str:
    """A default as one would write it in a spec."""
    import json

    from engine.cli.output import plain

    return json.dumps(plain(value))


def plan(
    spec: SpecFile,
    overrides: Overrides = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The plan of the tiny twin.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same plan as JSON, with each stage's config and cache key.")
    ] = False,
) -> None:
    """Show the stages of SPEC, what each needs, what is cached.

    Runs nothing and stores nothing.
    """
    from dataclasses import replace

    from engine.cli import planning
    from engine.cli.compiling import compiled
    from engine.cli.models import with_models

    variants = [
        replace(variant, plan=with_models(variant.plan, variant.loaded.experiment.model.name))
        for variant in compiled(spec, overrides or [], tiny=tiny)
    ]
    forecasts = [planning.forecast(variant.plan) for variant in variants]
    if as_json:
        rows = [planning.as_json(v, f) for v, f in zip(variants, forecasts, strict=True)]
        answer_json(rows[0] if len(rows) == 1 else rows)
        return
    for variant, forecast in zip(variants, forecasts, strict=True):
        for line in planning.tree(variant, forecast):
            answer(line)
