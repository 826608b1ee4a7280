"""What a Prefect server does by itself when something dies: it has the watchdog look, and tells people."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import cast
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import ActionTypes, CallWebhook, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from flows.stage import TAG as STAGE_TAG
from flows.watchdog import HEARTBEAT, HEARTBEAT_S, TAG
from regraft.fingerprint import hash_json

ENDED = tuple(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed"))
SUSPICION_S = 40  # without a heartbeat, before the watchdog looks
BEATING = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}  # for the environment of runs that are watched
Resource = dict[str, str | list[str]]
ANY_RUN: Resource = {"prefect.resource.id": "prefect.flow-run.*"}
MESSAGE = (
    '{"text": {{ (flow.name ~ "/" ~ deployment.name ~ " ended as " ~ flow_run.state.name ~ ": " '
    "~ flow_run.state.message) | tojson }}}"
)


def watch(client: SyncPrefectClient, watchdog: UUID) -> None:
    """Have the server run the deployment `watchdog` when a run misses its heartbeats, and after each crash."""
    look = RunDeployment.model_validate({"source": "selected", "deployment_id": watchdog})
    _put(
        client,
        "regraft: a run that is silent has crashed",
        EventTrigger(
            match=ANY_RUN,
            match_related=_tagged(TAG, STAGE_TAG),  # runs of others may beat more slowly
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDED},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SUSPICION_S),
        ),
        look,
    )
    _put(
        client,
        "regraft: after a crash, the watchdog",
        EventTrigger(
            match=ANY_RUN,
            match_related=_tagged(TAG),
            expect={"prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        look,
    )


def notify(client: SyncPrefectClient, project: str, deployments: Sequence[UUID], url: str | None) -> None:
    """Have the server post a message to `url` when a run of the deployments of `project` fails or crashes.

    None: no longer.
    """
    name = f"regraft: tell that a run of {project} failed"
    # Of letters, digits and dashes alone, as Prefect wants it; a project's name may hold others.
    block_name = f"regraft-{hash_json(project)[:12]}"
    if url is None:
        for found in client.read_automations_by_name(name):
            client.delete_automation(found.id)
        with suppress(ObjectNotFound):  # there was none
            block = client.read_block_document_by_name(block_name, Webhook.get_block_type_slug())
            client.delete_block_document(block.id)
        return
    block_id = cast(UUID, Webhook(url=SecretStr(url)).save(block_name, overwrite=True))
    _put(
        client,
        name,
        EventTrigger(
            match=ANY_RUN,
            match_related={
                "prefect.resource.role": "deployment",
                "prefect.resource.id": [f"prefect.deployment.{each}" for each in deployments],
            },
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        CallWebhook(block_document_id=block_id, payload=MESSAGE),
    )


def _tagged(*tags: str) -> Resource:
    return {"prefect.resource.role": "tag", "prefect.resource.id": [f"prefect.tag.{tag}" for tag in tags]}


def _put(client: SyncPrefectClient, name: str, trigger: EventTrigger, action: ActionTypes) -> None:
    """Make the automation `name`, or bring it up to date."""
    wanted = AutomationCore(name=name, trigger=trigger, actions=[action])
    found = client.read_automations_by_name(name)
    if found:
        client.update_automation(found[0].id, wanted)
    else:
        client.create_automation(wanted)
