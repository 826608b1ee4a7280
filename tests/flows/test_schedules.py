"""Whether Prefect's server, with the versions that are installed, writes down when a schedule is due."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prefect.server.database.orm_models import Base, FlowRun, FlowRunState
from prefect.server.models.deployments import _insert_scheduled_flow_runs
from prefect.server.schemas.states import Scheduled, StateType
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine


def test_the_server_writes_down_the_runs_of_a_schedule():
    """With SQLAlchemy 2.1 it does not, and only its log says so: no schedule ever begins a run."""
    due = datetime.now(UTC)
    run = {
        "id": uuid4(),
        "flow_id": uuid4(),
        "idempotency_key": "scheduled",
        "state": Scheduled().model_dump(),
        "state_type": StateType.SCHEDULED,
        "state_name": "Scheduled",
        "expected_start_time": due,
        "next_scheduled_start_time": due,
    }

    tables: Any = [FlowRun.__table__, FlowRunState.__table__]
    insert: Any = _insert_scheduled_flow_runs

    async def written():
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all, tables=tables)
        async with AsyncSession(engine) as session:
            ids = await insert(session=session, runs=[run])
        await engine.dispose()
        return ids

    assert asyncio.run(written()) == [run["id"]]
