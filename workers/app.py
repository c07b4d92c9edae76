"""The Celery application: how a worker hears that something is ready. SQL knows what it is.

A message carries a stage's id. It is acknowledged when it is received, may be lost or come twice, and holds
nothing that one would have to believe.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from engine.settings import Settings

RUN_STAGE = "rlx.run_stage"


def make_app(settings: Settings) -> Celery:
    """An application that talks to the settings' broker."""
    app = Celery("rlx", set_as_current=False, loader="celery.loaders.default:Loader")
    app.conf.update(
        broker_url=settings.broker_url,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_heartbeat=20,
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_pool="threads",
        worker_concurrency=1,
        **_transport(settings),
    )
    return app


def _transport(settings: Settings) -> dict[str, Any]:
    if settings.embedded:
        messages = settings.broker / "messages"
        messages.mkdir(parents=True, exist_ok=True)
        return {
            "broker_transport": "workers.filesystem:Transport",
            "broker_transport_options": {
                "data_folder_in": str(messages),
                "data_folder_out": str(messages),
                "control_folder": str(settings.broker / "control"),
                "polling_interval": 0.1,
            },
        }
    if settings.broker_url.startswith("redis"):
        return {
            "broker_transport_options": {"socket_connect_timeout": 5, "socket_timeout": 30, "socket_keepalive": True}
        }
    return {}


def send(app: Celery, stage_id: str, queue: str, priority: int) -> None:
    """Say that a stage is ready. Raises what the broker's client raises where it is away."""
    app.send_task(RUN_STAGE, args=[stage_id], queue=queue, priority=max(0, min(priority, 9)), retry=False)
