"""What methods that learn from a fixed set of examples share: their settings, their data, the course of training."""
