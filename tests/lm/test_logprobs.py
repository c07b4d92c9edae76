"""Log-probs, entropy and KL against the textbook's sums over the vocabulary, gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM

from engine.lm import logprobs, ops, token_function
from engine.lm.encode import encode
from engine.lm.logprobs import distributions, token_logps, token_stats
from engine.lm.packing import pack
from engine.lm.token_function import TokenFunction


@pytest.fixture(params=["whole", "chunked", "recomputed"])
def regime(request, monkeypatch):
    """Everything at once; in chunks of two tokens; in chunks, with logits computed again in the backward pass."""
    if request.param != "whole":
        monkeypatch.setattr(token_function, "CHUNK", 2 * 11)
    if request.param == "recomputed":
        monkeypatch.setattr(token_function, "KEEP", 0)


def tensors(seed=0, tokens=5, width=3, vocabulary=11):
    generator = torch.Generator().manual_seed(seed)
    hidden, other = (torch.randn(tokens, width, generator=generator) for _ in range(2))
    weight, frozen = (torch.randn(vocabulary, width, generator=generator) for _ in range(2))
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets, other, frozen


def textbook(hidden, weight, targets, other, frozen):
    """Each of the three by a loop over tokens and the vocabulary."""
    logps, entropies, kls = [], [], []
    for h, o, target in zip(hidden.double(), other.double(), targets.tolist(), strict=True):
        p = torch.exp(weight.double() @ h)
        p = p / p.sum()
        q = torch.exp(frozen.double() @ o)
        q = q / q.sum()
        logps.append(torch.log(p[target]))
        entropies.append(-sum(x * torch.log(x) for x in p))
        kls.append(sum(x * torch.log(x / y) for x, y in zip(p, q, strict=True)))
    return torch.stack(logps), torch.stack(entropies), torch.stack(kls)


@pytest.mark.usefixtures("regime")
def test_values_are_the_textbooks():
    hidden, weight, targets, other, frozen = tensors()

    found = TokenFunction.apply(hidden, weight, targets, (other, frozen), True)

    for mine, expected in zip(found, textbook(hidden, weight, targets, other, frozen), strict=True):
        assert_close(mine.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize("mix", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.7, -0.3, 2.0)])
def test_gradients_are_those_of_the_textbook(mix):
    hidden, weight, targets, other, frozen = tensors(1)
    scale = torch.rand(5, generator=torch.Generator().manual_seed(2)) + 0.5
    mine = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]

    parts = TokenFunction.apply(*mine, targets, (other, frozen), True)
    sum((m * (scale * part).sum() for m, part in zip(mix, parts, strict=True)), torch.zeros(())).backward()
    parts = textbook(*theirs, targets, other, frozen)
    sum((m * (scale * part).sum() for m, part in zip(mix, parts, strict=True)), torch.zeros(())).backward()

    for a, b in zip(mine, theirs, strict=True):
        assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_a_policy_diverges_from_itself_by_nothing_and_pulls_nowhere(make_policy):
    policy = make_policy()
    packed = pack([[1, 2, 3]], [[[4, 5, 6], [7]]], want=("before",))
    with torch.no_grad():
        reference = encode(policy.model, packed)[packed.before]
    hidden = encode(policy.model, packed)[packed.before]

    stats = token_stats(policy.model, hidden, packed.targets, reference=(policy.model, reference))

    assert stats.kl is not None
    assert stats.kl.abs().max() < 1e-5
    for grad in torch.autograd.grad(stats.kl.sum(), policy.parameters()):
        assert grad.abs().max() < 1e-4


def test_log_probs_are_the_models_own(make_policy):
    policy = make_policy("qwen2")
    prefixes, candidates = [[1, 2, 3], [9, 8]], [[[4, 5, 6], [7]], [[3, 3]]]
    packed = pack(prefixes, candidates, want=("before",))

    with torch.no_grad():
        found = token_logps(policy.model, encode(policy.model, packed)[packed.before], packed.targets)
        expected = []
        for prefix, options in zip(prefixes, candidates, strict=True):
            for option in options:
                out = policy.model(input_ids=torch.tensor([prefix + option])).logits[0]
                logps = torch.log_softmax(out, -1)
                expected += [logps[len(prefix) - 1 + i, token] for i, token in enumerate(option)]

    assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


def test_a_kept_reference_distribution_serves_as_well_as_its_model(make_policy):
    policy, frozen = make_policy(), make_policy(seed=1)
    packed = pack([[1, 2, 3]], [[[4, 5, 6], [7]]], want=("before",))
    with torch.no_grad():
        hidden, other = (encode(p.model, packed)[packed.before] for p in (policy, frozen))
        kept = distributions(frozen.model, other)

    a = token_stats(policy.model, hidden, packed.targets, entropy=True, reference=(frozen.model, other))
    b = token_stats(policy.model, hidden, packed.targets, entropy=True, reference=kept)

    assert_close(a.kl, b.kl, rtol=0, atol=1e-6)


def test_capped_logits_take_the_slower_road_to_the_right_numbers(tokenizer):
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=0.5,
        )
    ).eval()
    ids = [1, 2, 3, 4, 5]
    packed = pack([ids[:2]], [[ids[2:]]], want=("before",))

    with torch.no_grad():
        hidden = encode(model, packed)[packed.before]
        stats = token_stats(model, hidden, packed.targets, entropy=True, reference=(model, hidden))
        whole = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)

    assert_close(stats.logps, whole[[1, 2, 3], ids[2:]], rtol=0, atol=1e-5)
    assert_close(stats.entropy, -(whole.exp() * whole).sum(-1)[1:4], rtol=0, atol=1e-4)
    assert stats.kl is not None
    assert stats.kl.abs().max() < 1e-6


def test_a_model_without_an_output_layer_is_named():
    with pytest.raises(ValueError, match="Linear has no output layer"):
        logprobs.output_layer(_Headless())


class _Headless(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def get_output_embeddings(self):
        return None


_Headless.__name__ = "Linear"


def test_the_norm_and_its_derivative():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)

    y = ops.rms_norm(x, weight, 1e-3)

    expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-3) * weight
    assert_close(y, expected)
    assert torch.autograd.gradcheck(lambda a, b: ops.rms_norm(a, b, 1e-3), (x, weight))


def test_a_rotation_keeps_products_dependent_on_distance_alone():
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    frequencies = torch.tensor([1.0, 0.3, 0.1, 0.03])

    def at(x, position):
        angles = position * frequencies
        return ops.rotate(x, torch.polar(torch.ones(4), angles).view(1, 1, 4))

    near = (at(q, 7) * at(k, 4)).sum()
    assert_close(near, (at(q, 103) * at(k, 100)).sum(), rtol=0, atol=1e-4)
    assert_close((at(q, 5) * at(k, 5)).sum(), (q * k).sum(), rtol=0, atol=1e-5)
