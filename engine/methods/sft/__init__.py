"""Supervised fine-tuning: a model learns to say what written conversations say."""
