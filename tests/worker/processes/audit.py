"""An independent checker: triggers keep a record of what is written, queries tell what must never be."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

INSTALL: LiteralString = """
CREATE TABLE deposits (execution_id text NOT NULL, step text NOT NULL);
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY, kind text, run_id uuid, detail text,
    task_id uuid, token integer, holder uuid, is_fenced boolean,
    writer text DEFAULT current_setting('application_name'),
    xid xid8 DEFAULT pg_current_xact_id(), at timestamptz DEFAULT clock_timestamp()
);

CREATE FUNCTION audit_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.outcome IS NOT NULL OR NEW.outcome IS NOT NULL THEN
        INSERT INTO audit (kind, run_id, detail)
        VALUES ('outcome', OLD.run_id, format('%s to %s', OLD.outcome, NEW.outcome));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE OR DELETE ON zart_execution_runs FOR EACH ROW EXECUTE FUNCTION audit_outcome();

-- A child's task as it was when it was deleted: its checkpoint may be written in the same statement.
CREATE TABLE deleted_children (LIKE zart_tasks, xid xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION audit_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deleted_children SELECT OLD.*;
    RETURN OLD;
END $$;
CREATE TRIGGER audit BEFORE DELETE ON zart_tasks FOR EACH ROW WHEN (OLD.step IS NOT NULL)
    EXECUTE FUNCTION audit_deletion();

CREATE FUNCTION is_there(worker uuid) RETURNS boolean STABLE LANGUAGE sql AS
    'SELECT EXISTS (SELECT FROM zart_workers WHERE worker_id = worker)';

-- The turns that were under way as the statement saw it, of the body and of the child: a stable function sees no more.
CREATE FUNCTION audit_turn() RETURNS trigger STABLE LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('audit.turn', (
        SELECT to_jsonb(t)::text FROM zart_tasks t WHERE task_id = NEW.run_id AND is_there(worker_id)), true);
    PERFORM set_config('audit.child', (
        SELECT to_jsonb(t)::text FROM zart_tasks t
        WHERE parent_run_id = NEW.run_id AND step = NEW.name AND is_there(worker_id)), true);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_1_turn AFTER INSERT OR UPDATE ON zart_steps FOR EACH ROW EXECUTE FUNCTION audit_turn();

-- A step of the body's is written by who holds the run's task, a child by who holds its own. Two kinds of ends are
-- written by others, who delete the child's task with it: it is given up by who holds the run, and failed by who
-- takes over after its last worker has died.
CREATE FUNCTION audit_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    run zart_tasks;
    child zart_tasks;
    deleted deleted_children;
    ends text = coalesce(NEW.error ->> 'category', '') || ' ' || coalesce(NEW.error ->> 'error_type', '');
BEGIN
    -- What follows a cancellation has a task of its own: the run's is gone then.
    SELECT * INTO run FROM zart_tasks WHERE run_id = NEW.run_id AND step IS NULL;
    -- A cancel waits for nobody: a checkpoint that was under way at that moment may still be added (ADR 0003).
    IF (SELECT outcome = 'cancelled' FROM zart_execution_runs WHERE run_id = NEW.run_id) THEN
        SELECT * INTO run FROM jsonb_populate_record(run, nullif(current_setting('audit.turn'), '')::jsonb);
    END IF;
    SELECT * INTO child FROM zart_tasks WHERE parent_run_id = NEW.run_id AND step = NEW.name;
    -- Nor does the end of a run wait for children of which it has no more need.
    IF child.task_id IS NULL AND (SELECT outcome IS NOT NULL FROM zart_execution_runs WHERE run_id = NEW.run_id) THEN
        SELECT * INTO child FROM jsonb_populate_record(child, nullif(current_setting('audit.child'), '')::jsonb);
    END IF;
    SELECT * INTO deleted FROM deleted_children
    WHERE parent_run_id = NEW.run_id AND step = NEW.name AND xid = pg_current_xact_id();
    INSERT INTO audit (kind, run_id, detail, task_id, token, holder, is_fenced)
    SELECT 'checkpoint', NEW.run_id, NEW.name, by.task_id, by.token, by.holder, by.is_fenced
    FROM (VALUES
        (NEW.kind <> 'child', run.task_id, run.attempt, run.worker_id, is_there(run.worker_id)),
        (NEW.kind = 'child' AND child.task_id IS NOT NULL,
            child.task_id, child.attempt, child.worker_id, is_there(child.worker_id)),
        (NEW.kind = 'child' AND child.task_id IS NULL AND ends LIKE 'step_cancelled %',
            run.task_id, run.attempt, run.worker_id, deleted.task_id IS NOT NULL AND is_there(run.worker_id)),
        (NEW.kind = 'child' AND child.task_id IS NULL AND ends NOT LIKE 'step_cancelled %',
            deleted.task_id, deleted.attempt, NULL,
            ends LIKE '% WorkerCrashed' AND deleted.worker_id IS NOT NULL AND NOT is_there(deleted.worker_id))
    ) AS by (applies, task_id, token, holder, is_fenced) WHERE by.applies;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_2_checkpoint AFTER INSERT OR UPDATE ON zart_steps FOR EACH ROW EXECUTE FUNCTION audit_checkpoint();

CREATE FUNCTION audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.completed_at IS NOT NULL THEN  -- a wait for an event is written when it begins, and when it is done
        INSERT INTO audit (kind, run_id, detail) VALUES ('change', OLD.run_id, format('%s of %s', TG_OP, OLD.name));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_change AFTER UPDATE OR DELETE ON zart_steps FOR EACH ROW EXECUTE FUNCTION audit_change();
"""

FORBIDDEN: Mapping[str, LiteralString] = {
    "a run that has not ended has no task": """
        SELECT execution_id FROM zart_execution_runs r
        WHERE outcome IS NULL AND NOT EXISTS (SELECT FROM zart_tasks t WHERE t.task_id = r.run_id)
    """,
    "a run that has ended still has a task": """
        SELECT execution_id FROM zart_execution_runs JOIN zart_tasks USING (run_id)
        WHERE outcome IS NOT NULL AND (outcome <> 'cancelled' OR task_id = run_id)
    """,
    "an execution that was cancelled has left one behind that is bound to it": """
        SELECT c.execution_id FROM zart_executions c JOIN zart_execution_runs r ON r.run_id = c.run_id
        JOIN zart_executions p ON p.execution_id = c.parent_id JOIN zart_execution_runs pr ON pr.run_id = p.run_id
        WHERE c.is_bound AND r.outcome IS NULL AND pr.outcome = 'cancelled'
    """,
    "an execution is the child of a run that another one has followed": """
        SELECT c.execution_id FROM zart_tasks t JOIN zart_executions c ON c.run_id = t.run_id
        JOIN zart_executions p ON p.execution_id = c.parent_id WHERE t.step IS NULL AND t.parent_run_id <> p.run_id
    """,
    "an execution that was started is not on record, or the other way round": """
        WITH started AS (SELECT parent_id, execution_id FROM zart_executions WHERE parent_id IS NOT NULL),
             recorded AS (
                 SELECT DISTINCT r.execution_id, s.result #>> '{}'
                 FROM zart_steps s JOIN zart_execution_runs r USING (run_id)
                 WHERE kind = 'execution' AND s.error IS NULL)
        (TABLE started EXCEPT ALL TABLE recorded) UNION ALL (TABLE recorded EXCEPT ALL TABLE started)
    """,
    "a task is held by a worker that is not there": """
        SELECT task_id, worker_id FROM zart_tasks
        WHERE worker_id IS NOT NULL AND worker_id NOT IN (SELECT worker_id FROM zart_workers)
    """,
    "a run ended twice, or changed otherwise": """
        SELECT run_id, array_agg(detail) FROM audit WHERE kind = 'outcome' GROUP BY run_id HAVING count(*) > 1
    """,
    "a recorded step changed": "SELECT run_id, detail FROM audit WHERE kind = 'change'",
    "a step was recorded by somebody who did not hold the run": """
        SELECT run_id, detail, writer FROM audit WHERE kind = 'checkpoint' AND is_fenced IS NOT TRUE
    """,
    "two workers wrote with one token": """
        SELECT run_id, task_id, token, array_agg(DISTINCT writer) FROM audit
        WHERE kind = 'checkpoint' GROUP BY run_id, task_id, token HAVING count(DISTINCT writer) > 1
    """,
    "an older turn wrote after a newer one": """
        SELECT run_id, id FROM (
            SELECT run_id, id, token, max(token) OVER (PARTITION BY run_id, task_id ORDER BY id) AS newest
            FROM audit WHERE kind = 'checkpoint') AS written
        WHERE token < newest
    """,
    "a child is recorded and still has a task": """
        SELECT s.run_id, name FROM zart_steps s JOIN zart_tasks t ON t.parent_run_id = s.run_id AND t.step = s.name
    """,
    "an event was taken twice, or by no wait, or a wait was done without one": """
        WITH taken AS (SELECT run_id, payload::text FROM zart_events WHERE taken_at IS NOT NULL),
             done AS (
                 SELECT run_id, result::text FROM zart_steps
                 WHERE kind = 'event' AND completed_at IS NOT NULL AND error IS NULL)
        (TABLE taken EXCEPT ALL TABLE done) UNION ALL (TABLE done EXCEPT ALL TABLE taken)
    """,
    "a stream has a gap": """
        SELECT execution_id, stream, count(*), max(seq) FROM zart_stream_items
        GROUP BY execution_id, stream HAVING count(*) <> max(seq) + 1
    """,
    "a value was emitted without its checkpoint, or twice, or not at all": """
        WITH emitted AS (SELECT run_id, count(*) FROM zart_stream_items GROUP BY run_id),
             done AS (SELECT run_id, count(*) FROM zart_steps WHERE kind = 'emit' GROUP BY run_id)
        (TABLE emitted EXCEPT ALL TABLE done) UNION ALL (TABLE done EXCEPT ALL TABLE emitted)
    """,
    "a step's own writes and its checkpoint are not both there, once each": """
        WITH written AS (SELECT execution_id, step FROM deposits),
             recorded AS (
                 SELECT execution_id, name FROM zart_steps s JOIN zart_execution_runs USING (run_id)
                 WHERE (name LIKE 'deposit%' OR name LIKE 'undo-deposit%') AND s.error IS NULL)
        (TABLE written EXCEPT ALL TABLE recorded) UNION ALL (TABLE recorded EXCEPT ALL TABLE written)
    """,
}


class Database:
    """The database as the test sees it, over a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def reconnect(self) -> None:
        """Make a new connection, after the server was away."""
        self._connection.close()
        self._connection = psycopg.connect(self._url, autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def execute(self, statement: LiteralString, *parameters: object) -> list[dict[str, Any]]:
        """Return the rows of a statement, if it has any."""
        cursor = self._connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def changed(self, statement: LiteralString) -> Generator[None]:
        """Change something for a while."""
        with self._connection.transaction(force_rollback=True):
            self.execute(statement)
            yield

    def value(self, statement: LiteralString, *parameters: object) -> Any:
        """Return the one value of a statement."""
        (row,) = self.execute(statement, *parameters)
        (value,) = row.values()
        return value
