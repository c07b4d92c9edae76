"""A reward model: a number for an answer, learnt from which of two answers was preferred."""
