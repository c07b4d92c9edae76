"""The only Celery code: what takes stages from the queue and sees them through, each in a process of its own."""
