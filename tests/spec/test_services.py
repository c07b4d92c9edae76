"""The services block: what it accepts, what it refuses and in which words."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from engine.errors import SpecError
from engine.plan.hashing import HOSTED, TERMS
from engine.spec.services import VLLM, Command, Hosted, HTTPRetriever, Reward

KINDS = (VLLM, Reward, HTTPRetriever, Command, Hosted)


def with_services(spec: str, block: str) -> str:
    indented = "\n".join(f"  {line}" for line in block.strip().splitlines())
    return f"{spec}services:\n{indented}\n"


def test_every_kind_with_its_defaults(desk: Any) -> None:
    (desk.folder / "passages.jsonl").write_text('{"text": "a"}\n')
    loaded = desk.load(
        with_services(
            desk.spec,
            """
reader: {kind: vllm, model: org/name@main, gpus: 2, memory: 0.8, args: [--max-num-seqs, "64"]}
judge: {kind: reward, model: "run:dates-reward-1@best", keep: 5m}
wiki: {kind: http-retriever, corpus: {file: passages.jsonl}}
own: {kind: http-retriever, function: "my.package:make"}
other: {kind: command, argv: [serve, --port, "{port}"], env: {TOKEN: "${env:TOKEN}", KEY: "{key}"}, folder: .}
api: {kind: endpoint, url: "https://api.example.com/v1/", model: large, key: "${env:API_KEY}", budget: 5, price_out: 2}
""",
        )
    )

    services = loaded.experiment.services
    assert [type(service) for service in services.values()] == [
        VLLM,
        Reward,
        HTTPRetriever,
        HTTPRetriever,
        Command,
        Hosted,
    ]
    assert services["reader"].gpus == 2
    assert services["judge"].keep == 300.0
    assert services["judge"].start_timeout == 600.0
    assert services["wiki"].corpus.file == str(desk.folder / "passages.jsonl")
    assert services["wiki"].corpus.sha256 == sha256(b'{"text": "a"}\n').hexdigest()
    assert services["other"].folder == str(desk.folder)
    assert services["other"].env["TOKEN"] == "${env:TOKEN}"
    api = services["api"]
    assert (api.url, api.key, api.health, api.retries) == ("https://api.example.com/v1", "${env:API_KEY}", "/models", 6)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("reader: {kind: vlm, model: org/name}", "Did you mean 'vllm'?"),
        ("reader: {model: org/name}", "services.reader needs a kind"),
        ("reader: {kind: vllm}", "services.reader.model is missing"),
        ("reader: {kind: vllm, model: org/name, max_lenght: 9}", "Did you mean 'max_length'?"),
        ("reader: {kind: vllm, model: 'scratch:llama-nano'}", "has learnt nothing yet"),
        ("reader: {kind: vllm, model: ./nowhere}", "there is no directory"),
        ("reader: {kind: vllm, model: org/name, args: [--api-key=abc]}", "--api-key is a secret"),
        ("reader: {kind: vllm, model: org/name, args: [--served, --port]}", "--port is the engine's"),
        ("reader: {kind: vllm, model: org/name, memory: 1.5}", "must be at most 1"),
        ("reader: {kind: vllm, model: org/name, keep: soon}", "is not a duration"),
        ("Reader: {kind: vllm, model: org/name}", "Reader"),
        ("wiki: {kind: http-retriever}", "needs one of `corpus`"),
        ("wiki: {kind: http-retriever, function: makeit}", "names no function"),
        ("wiki: {kind: http-retriever, corpus: {file: nowhere.jsonl}}", "there is no file"),
        ("other: {kind: command, argv: []}", "argv"),
        ("other: {kind: command, argv: [serve, '{prot}']}", "did you mean {port}?"),
        ("other: {kind: command, argv: [serve, '--key={key}']}", "$RLX_SERVICE_KEY"),
        ("other: {kind: command, argv: [serve, '${env:TOKEN}']}", "other secrets go into `env`"),
        ("other: {kind: command, argv: [serve], env: {A: '{name}'}}", "only {host}, {port}, {key} are"),
        ("other: {kind: command, argv: [serve], health: up}", "health"),
        ("other: {kind: command, argv: [serve], folder: nowhere}", "there is no directory"),
        ("api: {kind: endpoint, url: example.com, model: m}", "is no endpoint: write http(s)://"),
        ("api: {kind: endpoint, url: 'http://a/v1', model: m, key: secret}", "write ${env:NAME}"),
        ("api: {kind: endpoint, url: 'http://a/v1', model: m, gpus: 1}", "'gpus' is not a key of services.api"),
        ("api: {kind: endpoint, url: 'http://a/v1', model: m, budget: 3}", "a budget needs prices"),
    ],
)
def test_what_is_refused(desk: Any, line: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        desk.load(with_services(desk.spec, line))
    (problem,) = caught.value.problems
    assert said in str(problem)
    assert problem.line == desk.spec.count("\n") + 2


def test_the_terms_that_no_cache_key_counts_are_keys_of_services() -> None:
    assert {*TERMS} <= {key for kind in KINDS for key in kind.model_fields}
    assert {*HOSTED} <= {*Hosted.model_fields}


def scored_by(spec: str, name: str) -> str:
    head, _, rest = spec.partition("  score_fn: |")
    return head + f"  score_by: {name}\n  done_fn:" + rest.partition("  done_fn:")[2]


def test_a_service_may_score_in_place_of_a_function(desk: Any) -> None:
    text = with_services(scored_by(desk.spec, "judge"), "judge: {kind: reward, model: org/judge}")
    experiment = desk.load(text).experiment
    assert (experiment.dataset.score_by, experiment.dataset.scores) == ("judge", True)


@pytest.mark.parametrize(
    ("name", "service", "said"),
    [
        ("juge", "judge: {kind: reward, model: org/judge}", "Did you mean 'judge'?"),
        ("judge", "judge: {kind: vllm, model: org/judge}", "is of kind vllm: only reward or command scores texts"),
    ],
)
def test_not_every_service_scores(desk: Any, name: str, service: str, said: str) -> None:
    (problem,) = desk.problems(with_services(scored_by(desk.spec, name), service))
    assert said in str(problem)
    assert problem.path == "dataset.score_by"


def test_two_that_score_are_one_too_many(desk: Any) -> None:
    text = with_services(
        desk.spec.replace("  score_fn:", "  score_by: judge\n  score_fn:"), "judge: {kind: reward, model: org/judge}"
    )
    (problem,) = desk.problems(text)
    assert "score_fn and score_by exclude each other" in str(problem)
