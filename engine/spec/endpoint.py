"""An endpoint that speaks OpenAI's protocol: where it is, what it may be asked, and what it may cost.

Only described here; `engine.lm.endpoint` talks to it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from engine.spec.base import Duration, SpecModel, complaint


class Endpoint(SpecModel):
    """A server with `/completions` and `/chat/completions`: vLLM's, or anybody's who offers the same."""

    url: str
    """Where its API begins, such as `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    key: str | None = Field(None, min_length=1, repr=False)
    """What it asks for as a bearer token, as `${env:NAME}`; empty: nothing."""
    token_ids: bool = True
    """Prompts go and completions come as token ids, with log-probabilities, as vLLM's server takes and gives them; off:
    as text, which is all that other servers know."""
    concurrency: int = Field(16, ge=1)
    """Requests under way at the same time."""
    connect_timeout: Duration = 10.0
    """Longest wait for a connection."""
    read_timeout: Duration = 120.0
    """Longest silence within an answer."""
    timeout: Duration = 600.0
    """Longest that one request may take in all."""
    retries: int = Field(6, ge=0)
    """Further tries where it is overloaded (429), broken (5xx), silent or away, each after a longer pause."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Requests started in a minute; empty: no limit on this side."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """Tokens of prompts and completions asked for in a minute; empty: no limit on this side."""
    price_in: float = Field(0.0, ge=0)
    """What a million prompt tokens cost, in any currency."""
    price_out: float = Field(0.0, ge=0)
    """What a million completion tokens cost, in the same."""
    budget: float | None = Field(None, gt=0)
    """The most that may be spent: a request that could exceed it is not made. Empty: no limit."""

    @field_validator("url")
    @classmethod
    def _leads_somewhere(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise complaint(f"{url!r} is no endpoint: write http(s)://host:port/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise complaint("a url with a name, a password or a query would be stored as it stands: use `key`")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _a_budget_has_prices(self) -> Endpoint:
        if self.budget is not None and not (self.price_in or self.price_out):
            raise complaint("a budget needs prices to be spent at: add price_in and price_out", at="budget")
        return self
