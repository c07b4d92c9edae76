"""Token-level REINFORCE: every token of an episode is weighed by its score against a baseline."""
