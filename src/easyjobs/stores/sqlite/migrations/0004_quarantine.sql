-- Messages that could not become jobs, and keys that are kept for as long as their broker may redeliver. No plain job touches any of this.

create table quarantine (
    id integer primary key autoincrement,
    broker text not null,
    queue text not null,
    key text,                                    -- the broker's id of the message
    reason text not null,
    detail text not null,
    size integer not null,
    at integer not null,
    waits_until integer,                         -- of a message whose task is not known yet
    task_queue text,
    task_name text,
    body blob not null
) strict;

create unique index quarantine_keys on quarantine (broker, queue, key) where key is not null; -- a redelivery is put aside once
create index quarantine_waiting on quarantine (task_queue, task_name, id) where waits_until is not null;

alter table idempotency add column until integer; -- null: as long as all keys
drop index idempotency_age;
create index idempotency_age on idempotency (at) where until is null;
create index idempotency_until on idempotency (until) where until is not null;
