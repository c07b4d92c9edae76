"""Token-level REINFORCE's heavy stage: assemble the parts and run their course."""

from __future__ import annotations

from functools import partial

from engine.methods.dialogue.course import Course
from engine.methods.dialogue.improve import Reference, TokenLearner, TokenRule
from engine.methods.dialogue.models import Loader, games, speakers
from engine.methods.dialogue.sampling import samplers
from engine.methods.dialogue.token_trainer import TokenTrainer
from engine.methods.reinforce.config import Reinforce
from engine.methods.reinforce.losses import centred
from engine.runtime.context import StageContext


def train(ctx: StageContext) -> None:
    """Train a policy; leaves `best/` and `latest/`, each with a `generator` directory."""
    config = Reinforce.model_validate(ctx.config["algorithm"])
    loader = Loader(ctx)
    policy = loader.policy()
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
                rule=TokenRule("reinforce", gamma=config.discount),
                reference=Reference(policy, fresh_adapters=loader.fresh_adapters) if config.kl > 0 else None,
            ),
            credit=partial(centred, baseline=config.baseline),
        )
        Course(ctx, trainer, iterations=config.iterations, checkpoint_every=config.checkpoint_every).run()
