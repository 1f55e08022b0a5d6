"""Registers this installation with MLflow's webhooks, through MLflow's API."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities.webhook import Webhook, WebhookEventStr

from registry_hooks.mlflow_calls import bound_requests, translated

NAME = "mlflow-promote"
"""Name of our webhook in MLflow; there is one per MLflow server."""

EVENTS: tuple[WebhookEventStr, ...] = (
    "model_version.created",
    "model_version_alias.created",
    "model_version_alias.deleted",
    "model_version_tag.set",
    "model_version_tag.deleted",
)

REQUIREMENTS = """\
MLflow sends webhooks for aliases, tags and new versions, not for stages: those are found by polling, or at once
with `mlflow server --app-name promote`. MLflow requires of the URL and of its own server:
- The URL has the scheme https. Set MLFLOW_WEBHOOK_ALLOWED_SCHEMES=https,http on the MLflow server to allow http.
- Its host name resolves to public addresses only. Set MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true on the MLflow server
  to allow private ones and this machine. Proxies from the environment are not used.
- The registry is in a database. MLflow keeps the secret encrypted with MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY (a
  Fernet key); without it every process of the server makes up its own and cannot read what another one wrote.
- A new or changed webhook counts after at most 60 s (MLFLOW_WEBHOOK_CACHE_TTL). Each event is sent once, repeated
  three times at most (MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES), and lost when that fails: the poll goes on regardless.
"""


def install(uri: str, url: str, secret: str) -> str:
    """See that the MLflow server at `uri` sends our events to `url`, signed with `secret`; the webhook's id.

    Repeating it with another URL or secret changes the webhook. Raises `RegistryError`.
    """
    bound_requests()
    client = MlflowClient(uri, uri)
    description = "Wakes mlflow-promote when an alias moves"
    with translated(f"registering {url} with MLflow", of_version=False):
        ours = _find(client)
        if ours is not None:
            client.update_webhook(ours.webhook_id, NAME, description, url, list(EVENTS), secret, "ACTIVE")
            return str(ours.webhook_id)
        return str(client.create_webhook(NAME, url, list(EVENTS), description, secret).webhook_id)


def _find(client: MlflowClient) -> Webhook | None:
    token: str | None = None
    while True:
        page = client.list_webhooks(page_token=token)
        for webhook in page:
            if webhook.name == NAME:
                return webhook
        token = page.token
        if not token:
            return None
