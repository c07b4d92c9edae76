"""rlx: declarative experiments in reinforcement learning of language models and retrievers."""

__version__ = "0.1.0"
