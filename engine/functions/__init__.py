"""The user's score, done, split and reply functions: kept in a process of their own, and fast to ask."""
