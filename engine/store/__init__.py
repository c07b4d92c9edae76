"""What is remembered: tables, sessions, state machines, one repository a noun, and the artifact store.

Repositories own queries and take a session; whoever calls them owns the commit. Nothing here imports torch.
"""
