"""What triggers keep a record of, and what must never be found there: plain SQL, beside that of the processes' tests.

Whoever writes is known by the `application_name` of the connection. `seats` tells which workers a process has been:
it is a new one whenever it was taken for dead.
"""

from collections.abc import Mapping
from typing import LiteralString

from tests.worker.processes.audit import FORBIDDEN as FORBIDDEN_OF_PROCESSES

INSTALL: LiteralString = """
CREATE TABLE orders (execution_id text PRIMARY KEY);
CREATE INDEX ON audit (run_id);

CREATE TABLE seats (worker_id uuid PRIMARY KEY, name text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION audit_seat() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seats (worker_id, name) VALUES (NEW.worker_id, current_setting('application_name'));
    RETURN NULL;
END $$;
CREATE TRIGGER audit_seat AFTER INSERT ON zart_workers FOR EACH ROW EXECUTE FUNCTION audit_seat();

CREATE FUNCTION audit_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.attempt <> OLD.attempt THEN
        INSERT INTO audit (kind, run_id, detail, task_id, token, holder, is_fenced)
        VALUES ('claim', NEW.run_id, NEW.step, NEW.task_id, NEW.attempt, NEW.worker_id, is_there(NEW.worker_id));
    ELSIF OLD.worker_id IS NOT NULL AND NEW.worker_id IS NULL THEN
        INSERT INTO audit (kind, run_id, detail, task_id, token, holder, is_fenced)
        VALUES ('freed', NEW.run_id, format('%s due %s, awaits %s, open %s', NEW.step, NEW.due_at, NEW.awaits,
            NEW.awaits_open), NEW.task_id, NEW.attempt, OLD.worker_id, is_there(OLD.worker_id));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_task AFTER UPDATE ON zart_tasks FOR EACH ROW EXECUTE FUNCTION audit_task();

CREATE FUNCTION audit_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (kind, run_id, detail, task_id, token, holder, is_fenced)
    VALUES ('end', OLD.run_id, OLD.step, OLD.task_id, OLD.attempt, OLD.worker_id, is_there(OLD.worker_id));
    RETURN OLD;
END $$;
CREATE TRIGGER audit_end BEFORE DELETE ON zart_tasks FOR EACH ROW EXECUTE FUNCTION audit_end();
"""
"""What is installed beside the audit of the processes' tests."""

WAKES = "every unfinished run can wake"
LOST = "nothing is lost"
REWRITTEN = "no checkpoint is rewritten"
TWICE = "every effect of trx() exactly once"
TERMINAL = "one terminal transition per run"
FENCED = "no write after a lost lease"
INVARIANTS = (LOST, REWRITTEN, TWICE, TERMINAL, FENCED, WAKES)

OF_PROCESSES: Mapping[str, str] = {
    "a run that has not ended has no task": WAKES,
    "a run that has ended still has a task": TERMINAL,
    "an execution that was cancelled has left one behind that is bound to it": TERMINAL,
    "an execution is the child of a run that another one has followed": WAKES,
    "an execution that was started is not on record, or the other way round": TWICE,
    "a task is held by a worker that is not there": WAKES,
    "a run ended twice, or changed otherwise": TERMINAL,
    "a recorded step changed": REWRITTEN,
    "a step was recorded by somebody who did not hold the run": FENCED,
    "two workers wrote with one token": FENCED,
    "an older turn wrote after a newer one": FENCED,
    "a child is recorded and still has a task": REWRITTEN,
    "an event was taken twice, or by no wait, or a wait was done without one": TWICE,
    "a stream has a gap": TWICE,
    "a value was emitted without its checkpoint, or twice, or not at all": TWICE,
    "a step's own writes and its checkpoint are not both there, once each": TWICE,
}
"""To which invariant each thing belongs that must never be found in the tests of processes either."""

OWN: Mapping[str, tuple[str, LiteralString]] = {
    "a task of a run waits, and nothing will wake it": (
        WAKES,
        """
        SELECT r.run_id, r.execution_id FROM zart_execution_runs r JOIN zart_tasks t ON t.task_id = r.run_id
        WHERE outcome IS NULL AND worker_id IS NULL AND due_at IS NULL AND awaits IS NULL AND awaits_open IS NULL
        """,
    ),
    "a run waits for an event that is there": (
        WAKES,
        """
        SELECT r.run_id, r.execution_id, e.name FROM zart_execution_runs r
        JOIN zart_tasks t ON t.task_id = r.run_id
        JOIN zart_events e ON e.execution_id = r.execution_id AND e.taken_at IS NULL AND t.awaits ? e.name
        WHERE outcome IS NULL AND worker_id IS NULL AND (due_at IS NULL OR due_at > clock_timestamp())
        """,
    ),
    "an execution's current run is not its last one, or an earlier one has not ended": (
        TERMINAL,
        """
        SELECT r.run_id, r.execution_id FROM zart_execution_runs r JOIN zart_executions e USING (execution_id)
        WHERE (r.run_id <> e.run_id AND r.outcome IS NULL) OR r.run_index > (
            SELECT run_index FROM zart_execution_runs c WHERE c.run_id = e.run_id)
        """,
    ),
    "a run was ended by somebody who did not hold it": (
        FENCED,
        """
        SELECT o.run_id, o.detail, o.writer FROM audit o
        WHERE o.kind = 'outcome' AND o.detail IN (' to completed', ' to failed') AND NOT EXISTS (
            SELECT FROM audit e JOIN seats s ON s.worker_id = e.holder
            WHERE e.kind = 'end' AND e.run_id = o.run_id AND e.task_id = o.run_id AND e.xid = o.xid
            AND e.is_fenced AND s.name = o.writer)
        """,
    ),
    "a step was recorded over the connection of another worker than holds the task": (
        FENCED,
        """
        SELECT run_id, detail, name AS holder, writer FROM audit JOIN seats ON worker_id = holder
        WHERE kind = 'checkpoint' AND name <> writer
        """,
    ),
    "a row of the app's is there without the execution that was started with it, or the other way round": (
        TWICE,
        """
        SELECT execution_id, o.execution_id IS NOT NULL AS has_order FROM orders o
        FULL JOIN (SELECT * FROM zart_executions WHERE execution_id ~ '^(money|steps)-[^-]*$') e USING (execution_id)
        WHERE o.execution_id IS NULL OR e.execution_id IS NULL
        """,
    ),
}
"""What else must never be found, and to which invariant it belongs."""

CHECKS: Mapping[str, tuple[str, LiteralString]] = {
    **{problem: (OF_PROCESSES[problem], query) for problem, query in FORBIDDEN_OF_PROCESSES.items()},
    **OWN,
}
