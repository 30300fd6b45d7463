"""What is said to PostgreSQL: each statement that the hot path sends, as text, and under which name it is prepared."""

from __future__ import annotations

from functools import cache

import psycopg

from penstock.store.asking import AGED, LOOK, OVERFLOW, QUEUED

GRANT_LOCK = 0x70656E73  # "pens": one grant lock for each database schema
# The schema of the tables, not the search path's first: that may be another one for each role of one store. By name, as
# versions with schema 0002 have it, which mostly see the same one: they share the lock.
STORE = """hashtext(coalesce((SELECT nspname FROM pg_namespace
WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('penstock_meta'))), current_schema()))"""
CHANNEL = "penstock_granted"  # for tickets; with a session's id at its end, for the waiters of that session

NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + %(shift)s::bigint"

CLAIM_COLUMNS = (
    "id, live_holder, kind, host, deployment, run_id, op_id, attempt, in_run, pools, tags, priority, url, demands,"
    " version, parent_id, within, name"
)
CLAIM_VALUES = (
    "%(id)s, %(live_holder)s, %(kind)s, %(host)s, %(deployment)s, %(run_id)s, %(op_id)s, %(attempt)s::int,"
    " %(in_run)s::boolean, %(pools)s::json, %(tags)s::json, %(priority)s::int, %(url)s, %(demands)s::json,"
    " %(version)s::int, %(parent_id)s, %(within)s::json, %(name)s"
)


class _Syntax:
    quote = '"'
    now = NOW.replace("%(shift)s", ":shift")
    share = " FOR KEY SHARE"
    update = " FOR UPDATE"
    skip = " FOR UPDATE SKIP LOCKED"
    queued = QUEUED
    returns_ids = True

    def parameter(self, name: str) -> str:
        return f"%({name})s"

    def is_duplicate(self, error: Exception) -> bool:
        return isinstance(error, psycopg.errors.UniqueViolation)


SYNTAX = _Syntax()


@cache
def acquire_statement(*, limited: bool, unlimited: bool, member: bool) -> str:
    """Admit the claim with all its slots; without room queue it, if it waits, or leave nothing.

    `picked` never waits for a lock. A limit without capacity is locked against those who give it one. Everything that
    is written hangs on `claimed`, so that a claim id or holder known already changes nothing.
    """
    parts = [
        f"""facts AS MATERIALIZED (
    SELECT {NOW} AS now, configuration_version AS version,
           %(owner_id)s::text IS NULL OR EXISTS (SELECT FROM penstock_session WHERE id = %(owner_id)s) AS alive
    FROM penstock_meta)""",
        f"""limits AS MATERIALIZED (
    SELECT l.id, l.key, l.capacity, w.slots
    FROM unnest(%(digests)s::text[], %(slots)s::int[], %(capacities)s::int[]) AS w (digest, slots, capacity)
    JOIN penstock_limit l ON l.digest = w.digest AND l.capacity IS NOT DISTINCT FROM w.capacity
    {"FOR KEY SHARE OF l" if unlimited else ""})""",
        f"""open AS MATERIALIZED (
    SELECT version = %(version)s AND alive AND (SELECT count(*) FROM limits) = %(count)s AND %(eligible_after)s = 0
           AND NOT EXISTS (
               SELECT FROM limits l JOIN LATERAL (
                   (SELECT FROM penstock_waiter w WHERE w.limit_id = l.id AND w.rank <= now - %(boost)s LIMIT 1)
                   UNION ALL
                   (SELECT FROM penstock_waiter w WHERE w.limit_id = l.id AND w.enqueued_at < now - {AGED} LIMIT 1)
               ) ahead ON true) AS yes
    FROM facts)""",
        """picked AS MATERIALIZED (
    SELECT l.id, l.key, s.n
    FROM limits l CROSS JOIN LATERAL (
        SELECT n FROM penstock_slot WHERE limit_id = l.id AND claim_id IS NULL AND usable
        ORDER BY n LIMIT l.slots FOR UPDATE SKIP LOCKED) s
    WHERE l.capacity IS NOT NULL AND (SELECT yes FROM open))"""
        if limited
        else "",
        f"""room AS MATERIALIZED (
    SELECT (SELECT yes FROM open){" AND (SELECT count(*) FROM picked) = %(total)s" if limited else ""} AS yes)""",
        f"""claimed AS (
    INSERT INTO penstock_claim ({CLAIM_COLUMNS}, rank, enqueued_at, eligible_at, state, liveness, session_id, deadline,
        granted_at, acknowledged_at)
    SELECT {CLAIM_VALUES}, now - %(boost)s, now, now + %(eligible_after)s,
        CASE WHEN room.yes THEN 'held' ELSE 'waiting' END,
        CASE WHEN room.yes THEN %(holding_liveness)s ELSE %(waiting_liveness)s END,
        CASE WHEN room.yes THEN %(holding_session)s ELSE %(waiting_session)s END,
        now + CASE WHEN room.yes THEN %(holding_after)s::bigint ELSE %(waiting_after)s::bigint END,
        CASE WHEN room.yes THEN now END, CASE WHEN room.yes THEN now END
    FROM facts, room
    WHERE version = %(version)s AND alive AND (SELECT count(*) FROM limits) = %(count)s AND (room.yes OR %(wait)s)
    ON CONFLICT DO NOTHING
    RETURNING id, state, rank, enqueued_at)""",
        """granted AS (
    INSERT INTO penstock_history (at, event, claim_id, host, deployment, label, slots, waited)
    SELECT enqueued_at, 'granted', id, %(host)s, %(deployment)s, %(label)s, %(demands)s::json, 0
    FROM claimed WHERE state = 'held' RETURNING id)""",
        """queued AS (
    INSERT INTO penstock_waiter (limit_id, rank, claim_id, slots, enqueued_at)
    SELECT l.id, c.rank, c.id, l.slots, c.enqueued_at FROM claimed c, limits l WHERE c.state = 'waiting')""",
        """member AS (
    INSERT INTO penstock_member (claim_id, session_id) SELECT id, %(owner_id)s FROM claimed)"""
        if member
        else "",
        """marked AS (
    UPDATE penstock_slot s SET claim_id = %(id)s, epoch = granted.id
    FROM picked, granted WHERE s.limit_id = picked.id AND s.n = picked.n
    RETURNING picked.key, s.n, s.epoch)"""
        if limited
        else "",
        f"""overflow AS (
    INSERT INTO penstock_slot (limit_id, n, claim_id, epoch, usable)
    SELECT l.id, g.id + i::bigint * {OVERFLOW}, %(id)s, g.id, false
    FROM granted g, limits l CROSS JOIN LATERAL generate_series(0, l.slots - 1) i WHERE l.capacity IS NULL
    RETURNING (SELECT key FROM limits WHERE limits.id = limit_id) AS key, n, epoch)"""
        if unlimited
        else "",
    ]
    taken = " UNION ALL ".join(
        f"SELECT key, n, epoch FROM {name}" for name, there in (("marked", limited), ("overflow", unlimited)) if there
    )
    slots = f"(SELECT json_agg(json_build_array(key, n, epoch)) FROM ({taken}) t)" if taken else "NULL::json"
    text = ",\n".join(part for part in parts if part)
    written = f"(SELECT state FROM claimed), {slots}"
    # A place in the queue need not be on disk before we go on: a waiter that is not known any more asks again.
    place = "set_config('synchronous_commit', 'off', true)"
    place = f"CASE WHEN %(owner_id)s::text IS NOT NULL AND (SELECT state FROM claimed) = 'waiting' THEN {place} END"
    return f"WITH {text}\nSELECT version, alive, (SELECT count(*) FROM limits), {written}, {place} FROM facts"


# A pass without the lock grants nothing. The lock's statement is not the pass's: that must see what is committed.
TRY_LOCK = f"""
SELECT set_config('penstock.locked', pg_try_advisory_xact_lock({GRANT_LOCK}, {STORE})::text, true)
"""
# The usual pass in one statement: of each open limit the first waiters that want nothing else, as many as fit, up to
# the first that is not so simple (it wants other limits, too, or is not eligible). No aged waiter may be there: it may
# reserve. What this leaves, the step-by-step pass does. Claim rows and slots are locked, and what could not be locked
# ends the row of those granted, for grants follow rank.
GRANT_SIMPLE = f"""
WITH RECURSIVE {QUEUED},
facts AS MATERIALIZED (
    SELECT {NOW} AS now, configuration_version AS version FROM penstock_meta
    WHERE current_setting('penstock.locked') = 'true'),
open AS MATERIALIZED (
    SELECT l.id, free.slots AS free, facts.now, facts.version
    FROM queued JOIN penstock_limit l ON l.id = queued.limit_id CROSS JOIN facts CROSS JOIN LATERAL (
        SELECT count(*) AS slots FROM (
            SELECT FROM penstock_slot s WHERE s.limit_id = l.id AND s.claim_id IS NULL AND s.usable LIMIT 100) s) free
    WHERE l.capacity IS NOT NULL AND free.slots > 0 AND NOT EXISTS (
        SELECT FROM penstock_waiter w WHERE w.limit_id = l.id AND w.enqueued_at < facts.now - {AGED})),
first AS MATERIALIZED (
    SELECT o.id AS limit_id, o.free, o.now, w.claim_id, w.rank, w.slots,
        sum(w.slots) OVER line AS upto,
        bool_and(c.state = 'waiting' AND c.version = o.version AND c.eligible_at <= o.now
            AND NOT EXISTS (SELECT FROM penstock_waiter x WHERE x.claim_id = w.claim_id AND x.limit_id <> o.id)
        ) OVER line AS simple
    FROM open o CROSS JOIN LATERAL (
        SELECT * FROM penstock_waiter WHERE limit_id = o.id ORDER BY rank, claim_id LIMIT o.free) w
    JOIN penstock_claim c ON c.id = w.claim_id
    WINDOW line AS (PARTITION BY o.id ORDER BY w.rank, w.claim_id)),
chosen AS MATERIALIZED (SELECT * FROM first WHERE simple AND upto <= free),
locked AS MATERIALIZED (
    SELECT l.id FROM chosen CROSS JOIN LATERAL (
        SELECT c.id FROM penstock_claim c
        WHERE c.id = chosen.claim_id AND c.state = 'waiting' AND c.version = (SELECT version FROM facts)
        FOR UPDATE SKIP LOCKED) l),
picked AS MATERIALIZED (
    SELECT t.limit_id, s.n FROM (SELECT limit_id, max(upto) AS slots FROM chosen GROUP BY limit_id) t
    CROSS JOIN LATERAL (
        SELECT n FROM penstock_slot WHERE limit_id = t.limit_id AND claim_id IS NULL AND usable
        ORDER BY n LIMIT t.slots FOR UPDATE SKIP LOCKED) s),
numbered AS (SELECT limit_id, n, row_number() OVER (PARTITION BY limit_id ORDER BY n) AS place FROM picked),
kept AS MATERIALIZED (
    SELECT * FROM (
        SELECT c.*, bool_and(l.id IS NOT NULL) OVER (PARTITION BY c.limit_id ORDER BY c.rank, c.claim_id) AS mine
        FROM chosen c LEFT JOIN locked l ON l.id = c.claim_id) k
    WHERE mine AND upto <= (SELECT count(*) FROM picked p WHERE p.limit_id = k.limit_id)),
granted AS (
    UPDATE penstock_claim c SET state = 'granted', granted_at = k.now FROM kept k WHERE c.id = k.claim_id
    RETURNING c.id, c.host, c.deployment, c.run_id, c.op_id, c.name, c.demands, c.enqueued_at, c.granted_at),
told AS (
    INSERT INTO penstock_history (at, event, claim_id, host, deployment, label, slots, waited)
    SELECT granted_at, 'granted', id, host, deployment,
        concat_ws(' ', host || '/' || deployment, coalesce(name, run_id), CASE WHEN name IS NULL THEN op_id END),
        demands, granted_at - enqueued_at FROM granted
    RETURNING id, claim_id),
marked AS (
    UPDATE penstock_slot s SET claim_id = k.claim_id, epoch = told.id
    FROM kept k JOIN told ON told.claim_id = k.claim_id
    JOIN numbered p ON p.limit_id = k.limit_id AND p.place > k.upto - k.slots AND p.place <= k.upto
    WHERE s.limit_id = p.limit_id AND s.n = p.n RETURNING 1),
dequeued AS (DELETE FROM penstock_waiter w USING kept k WHERE w.claim_id = k.claim_id RETURNING 1)
SELECT id FROM granted
"""
KEEP_GRANTED = "SELECT id, set_config('penstock.granted', string_agg(id, ',') OVER (), false) FROM granted"
ACKNOWLEDGE = f"""
WITH acknowledged AS (
    UPDATE penstock_claim SET state = 'held', acknowledged_at = {NOW}
    WHERE id = %(id)s AND session_id = %(session_id)s AND state = 'granted' AND kind = 'op' RETURNING id)
SELECT (SELECT count(*) FROM acknowledged), (
    SELECT json_agg(json_build_array(l.key, s.n, s.epoch))
    FROM penstock_slot s JOIN penstock_limit l ON l.id = s.limit_id WHERE s.claim_id = (SELECT id FROM acknowledged))
"""
# Held in this statement's snapshot, and so are its slots. They are locked in order, as by those who resize a limit;
# only the locked row says whether it is still usable.
# Unlike a grant it need not be on disk before we go on, and a grant after it is on disk only with it. Should a crash of
# the server take it back, the next beat of its session finds a claim that its process does not know, and ends it.
RELEASE = f"""
WITH ended AS (
    UPDATE penstock_claim SET state = 'ended', live_holder = NULL, session_id = NULL, deadline = NULL,
        ended_at = {NOW}, outcome = 'released'
    WHERE id = %(id)s AND session_id = %(session_id)s AND state = 'held' AND kind = 'op'
    RETURNING id, ended_at, granted_at, demands, host, deployment,
        concat_ws(' ', host || '/' || deployment, coalesce(name, run_id), CASE WHEN name IS NULL THEN op_id END)
            AS label),
held AS MATERIALIZED (
    SELECT limit_id, n, usable FROM penstock_slot WHERE claim_id = (SELECT id FROM ended)
    ORDER BY limit_id, n FOR UPDATE),
freed AS (
    UPDATE penstock_slot s SET claim_id = NULL FROM held
    WHERE s.limit_id = held.limit_id AND s.n = held.n AND held.usable RETURNING 1),
dropped AS (
    DELETE FROM penstock_slot s USING held
    WHERE s.limit_id = held.limit_id AND s.n = held.n AND NOT held.usable RETURNING 1),
told AS (
    INSERT INTO penstock_history (at, event, claim_id, host, deployment, label, slots, held)
    SELECT ended_at, 'released', id, host, deployment, label, demands, ended_at - granted_at FROM ended)
SELECT count(*), set_config('synchronous_commit', 'off', true) FROM ended
"""


# A process hears of its own waiters only. A notification has room for less than 8000 bytes; an empty one says "look".
NOTIFY = f"""
SELECT pg_notify('{CHANNEL}' || coalesce(session_id, ''),
    CASE WHEN count(*) <= 200 THEN string_agg(id, ',') ELSE '' END)
FROM penstock_claim WHERE id = ANY(%(ids)s) GROUP BY session_id
"""
# What belongs together goes to the server in one message, so that nobody waits for a lock while a client is scheduled,
# with each statement's plan kept: as statements that are prepared once for each connection.
PREPARED = {
    "penstock_look": f"PREPARE penstock_look AS {LOOK}",
    "penstock_release": "PREPARE penstock_release (text, text, bigint) AS "
    + RELEASE.replace("%(id)s", "$1").replace("%(session_id)s", "$2").replace("%(shift)s", "$3"),
    "penstock_grant": "PREPARE penstock_grant (bigint) AS "
    + GRANT_SIMPLE.replace("%(shift)s", "$1").replace("SELECT id FROM granted", KEEP_GRANTED),
    "penstock_notify": "PREPARE penstock_notify AS "
    + NOTIFY.replace("%(ids)s", "string_to_array(current_setting('penstock.granted'), ',')"),
}
RELEASE_AND_LOOK = "BEGIN; EXECUTE penstock_release ({id}, {session_id}, {shift}); COMMIT; EXECUTE penstock_look"
GRANT_AND_LOOK = (
    f"BEGIN; {TRY_LOCK}; SELECT set_config('penstock.granted', '', false); EXECUTE penstock_grant ({{shift}}); COMMIT;"
    " EXECUTE penstock_notify; EXECUTE penstock_look"
)
