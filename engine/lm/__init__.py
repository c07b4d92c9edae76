"""Language models: references, policies, samplers, log-probs, the learner, and tiny models from scratch."""
