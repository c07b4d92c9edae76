"""Returns, advantages, policy losses, divergences and critics' targets: tensors in, tensors out, shared by all methods."""
