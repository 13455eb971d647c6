"""What is known of a run, in the order of time: what was written, by whom, and which faults there were."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import LiteralString
from uuid import UUID

from tests.chaos.arena import Connection
from tests.chaos.injector import Done

EVENTS: LiteralString = """
SELECT audit.at, format('%s %s (xid %s, token %s, holder %s, fenced %s) by %s', kind, coalesce(detail, 'of the run'),
    xid, token, coalesce(name, holder::text), is_fenced, writer) AS what
FROM audit LEFT JOIN seats ON worker_id = holder WHERE run_id = $1
UNION ALL
SELECT failed_at, format('attempt %s of %s failed: %s', attempt, name, error ->> 'message')
FROM zart_step_attempts WHERE run_id = $1
UNION ALL
SELECT completed_at, format('%s %s recorded, attempts %s, error %s', kind, name, attempts, error ->> 'message')
FROM zart_steps WHERE run_id = $1
UNION ALL
SELECT created_at, format('run %s of %s created, trigger %s', run_index, execution_id, trigger)
FROM zart_execution_runs WHERE run_id = $1
UNION ALL
SELECT completed_at, format('ended as %s: %s %s', outcome, result, error) FROM zart_execution_runs WHERE run_id = $1
"""


async def timeline(connection: Connection, run_id: UUID, faults: Sequence[Done]) -> str:
    """Return the lines of a run's timeline."""
    rows = [(row["at"], row["what"]) for row in await connection.fetch(EVENTS, run_id) if row["at"] is not None]
    if not rows:
        return f"run {run_id}: nothing is known"
    first, last = min(at for at, _ in rows), max(at for at, _ in rows)
    for fault in faults:
        began, ended = (datetime.fromtimestamp(moment, UTC) for moment in (fault.began, fault.ended))
        if ended >= first and began <= last:
            rows += [(began, f"fault {fault} begins"), (ended, f"fault {fault} is over")]
    rows.sort(key=lambda row: row[0])
    return "\n".join([f"run {run_id}", *(f"  {at:%H:%M:%S.%f} {what}" for at, what in rows)])
