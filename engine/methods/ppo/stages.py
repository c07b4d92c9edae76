"""Token-level PPO's heavy stage: assemble the parts and run their course."""

from __future__ import annotations

from engine.methods.dialogue.course import Course
from engine.methods.dialogue.improve import Reference, TokenLearner, TokenRule
from engine.methods.dialogue.models import Loader, games, speakers
from engine.methods.dialogue.sampling import samplers
from engine.methods.dialogue.token_trainer import TokenTrainer
from engine.methods.ppo.config import PPO
from engine.runtime.context import StageContext


def train(ctx: StageContext) -> None:
    """Train a policy and its value network; leaves `best/` and `latest/`, each with a `generator` directory."""
    config = PPO.model_validate(ctx.config["algorithm"])
    loader = Loader(ctx)
    policy = loader.policy()
    value = loader.head(policy.tokenizer)
    with samplers(ctx) as sampler_of:
        trainer = TokenTrainer(
            seed=ctx.seed,
            environments=config.episodes.environments,
            policy=policy,
            speakers=speakers(sampler_of(policy), games(ctx, policy, ctx.config["evaluation"].get("splits"))),
            learner=TokenLearner(
                policy,
                loader.learner(policy.model, lr=config.lr, grad_clip=config.grad_clip),
                update=config,
                rule=TokenRule("ppo", gamma=config.discount, lam=config.lam, clip=config.clip),
                reference=Reference(policy, fresh_adapters=loader.fresh_adapters) if config.kl > 0 else None,
                value=(value, loader.learner(value, lr=config.value_lr, grad_clip=config.grad_clip)),
            ),
            credit=lambda scores: scores,
        )
        Course(ctx, trainer, iterations=config.iterations, checkpoint_every=config.checkpoint_every).run()
