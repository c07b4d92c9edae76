"""ArCHer's two heavy stages: assemble the parts and run their course; evaluate the best of it on fresh episodes."""

from __future__ import annotations

from engine.lm.heads import ScalarHead, load_head
from engine.lm.policy import Policy
from engine.methods.archer.config import Archer
from engine.methods.archer.ranker import OUTPUTS, Ranker, spread_twins
from engine.methods.archer.trainer import ArcherTrainer, valuer
from engine.methods.dialogue.course import Course
from engine.methods.dialogue.final import Contestant, evaluate_all, trained_models
from engine.methods.dialogue.improve import Reference, TokenLearner, TokenRule
from engine.methods.dialogue.models import Loader, games, speakers
from engine.methods.dialogue.sampling import SamplerOf, samplers
from engine.runtime.context import StageContext
from engine.runtime.seeds import derive


def train(ctx: StageContext) -> None:
    """Train both levels; leaves `best/` and `latest/`, each with a `generator` and a `ranker` directory."""
    config = Archer.model_validate(ctx.config["algorithm"])
    with samplers(ctx) as sampler_of:
        trainer = assemble(ctx, config, sampler_of)
        Course(ctx, trainer, iterations=config.iterations, checkpoint_every=config.checkpoint_every).run()


def assemble(ctx: StageContext, config: Archer, sampler_of: SamplerOf) -> ArcherTrainer:
    """All parts of an ArCHer run in their first state."""
    loader = Loader(ctx)
    policy = loader.policy()
    said = speakers(sampler_of(policy), games(ctx, policy, ctx.config["evaluation"].get("splits")))
    return ArcherTrainer(
        config,
        seed=ctx.seed,
        policy=policy,
        speakers=said,
        ranker=_ranker(ctx, loader, policy, config),
        generator=None if config.generator.mode == "frozen" else _generator(loader, policy, config),
    )


def _ranker(ctx: StageContext, loader: Loader, policy: Policy, config: Archer) -> Ranker:
    critic = loader.head(policy.tokenizer, outputs=OUTPUTS[config.ranker.critic])
    if config.ranker.critic == "qv":
        spread_twins(critic, derive(ctx.seed, "critic"))
    return _judge(ctx, loader, policy, critic, config)


def _judge(ctx: StageContext, loader: Loader, policy: Policy, critic: ScalarHead, config: Archer) -> Ranker:
    asked = config.ranker
    return Ranker(
        critic,
        loader.learner(critic, lr=asked.lr, grad_clip=asked.grad_clip, beta2=asked.beta2),
        asked,
        gamma=config.discount,
        opening=policy.reply_opening() if ctx.functions.has_reply else (),
    )


def _generator(loader: Loader, policy: Policy, config: Archer) -> TokenLearner:
    update = config.generator
    value = None
    if update.algorithm == "ppo" and update.value_net:
        net = loader.head(policy.tokenizer)
        value = (net, loader.learner(net, lr=update.value_lr, grad_clip=update.grad_clip))
    return TokenLearner(
        policy,
        loader.learner(policy.model, lr=update.lr, grad_clip=update.grad_clip),
        update=update,
        rule=TokenRule(update.algorithm, gamma=config.discount, lam=update.lam, clip=update.clip),
        reference=Reference(policy, fresh_adapters=loader.fresh_adapters) if update.kl > 0 else None,
        value=value,
    )


def evaluate(ctx: StageContext) -> None:
    """Play the best checkpoint and the untrained model on fresh episodes, ranked and with the generator alone."""
    config = Archer.model_validate(ctx.config["algorithm"])
    loader = Loader(ctx)
    untrained = loader.policy()
    folder, step = trained_models(ctx)
    policy = loader.saved_policy(folder / "generator")
    critic = load_head(folder / "ranker", policy.tokenizer, device=ctx.device, dtype=loader.dtype)
    ranker = _judge(ctx, loader, policy, critic, config)
    evaluate_all(
        ctx,
        [
            Contestant("untrained/score", 0, untrained, 1, None),
            Contestant("score", step, policy, config.ranker.candidates, valuer(ranker)),
            Contestant("score/generator", step, policy, 1, None),
        ],
    )
