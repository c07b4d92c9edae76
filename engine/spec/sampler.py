"""The block `model.sampler`: which engine completes prompts, and what it may use. The engines are `engine.lm`'s."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.spec.base import Size, SpecModel, complaint

KINDS = ("hf", "vllm")


class Sampler(SpecModel):
    """What completes prompts in training and evaluation; one word, or a block with options."""

    kind: Literal["hf", "vllm"] = "hf"
    """`hf`: rlx's own batched decoding on the policy itself; `vllm`: a vLLM engine in the same process, which takes
    half a minute to start and is worth it for models of a billion parameters and more."""
    memory: Size | None = None
    """For `vllm`: bytes of activations kept, such as `8GiB`, besides the weights; empty: 1 GiB, on a GPU 4 GiB."""
    max_sequences: int = Field(256, ge=1)
    """For `vllm`: completions decoded at the same time; more of them wait."""
    prefix_caching: bool = True
    """For `vllm`: keep the activations of contexts that begin alike, until the next update of the weights."""
    compile: bool | None = None
    """For `vllm`: compile the model first, which takes minutes; empty: on a GPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """For `vllm`: number format of its copy of the weights; `auto` is the policy's own."""

    @model_validator(mode="after")
    def _options_have_an_engine(self) -> Sampler:
        if self.kind == "hf" and (options := sorted(self.model_fields_set - {"kind"})):
            raise complaint(f"{options[0]} is an option of vLLM: add kind: vllm, or remove it", at=options[0])
        if self.memory == 0:
            raise complaint("an engine without memory can say nothing: leave it empty, or write 4GiB", at="memory")
        return self


def _spelled(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


SamplerChoice = Annotated[Sampler, BeforeValidator(_spelled)]
"""A sampler's block, or the one word for it."""
