-- The life of jobs. A plain job costs one insert and two updates, so every index is partial: it holds only the rows that its
-- question is about, and a job that does not use an option never touches the option's index.

create table jobs (
    seq integer primary key autoincrement,       -- never used again, not even after a delete: frames and the fence name jobs by it
    id blob not null unique,                     -- UUIDv7, so that this index grows at its end
    lane integer not null,
    state integer not null,                      -- domain.lifecycle.JobState
    rank integer not null,                       -- due time - priority * 60 s, in microseconds: what is claimed first
    attempt integer not null default 0,          -- + 1 at each claim, never reset
    session integer,                             -- the last that claimed it
    back integer not null default 0,             -- domain.lifecycle.Back
    round integer not null default 1,
    failures integer not null default 0,         -- reported failures of this round
    crashes integer not null default 0,
    max_retries integer not null,
    max_crashes integer not null,
    priority integer not null,
    run_at integer,
    timeout_us integer,
    expires_at integer,
    ttl_us integer,                              -- how long the result is kept
    cancel_requested integer not null default 0,
    unique_key blob,
    parent_seq integer,                          -- a successor: whose, by which edge, of which round (of a call: which generation)
    edge text,
    parent_round integer,
    depth integer not null default 0,
    created_at integer not null,
    started_at integer,
    finished_at integer,
    pulled_at integer,
    args blob not null,                          -- payloads stand last: what is read often lies on the row's first page
    result blob,
    error blob
) strict;

create index jobs_ready on jobs (lane, rank, seq) where state = 0;
create index jobs_running on jobs (session) where state = 1;
create index jobs_due on jobs (run_at) where state = 6;
create index jobs_ended_badly on jobs (state, seq) where state between 3 and 5; -- `in (3, 4, 5)` would cost every write 2 µs
create index jobs_pulled on jobs (pulled_at) where pulled_at is not null and result is not null;
create unique index jobs_successors on jobs (parent_seq, edge, parent_round) where parent_seq is not null;
create index jobs_expiring on jobs (expires_at) where expires_at is not null and state in (0, 6, 7);
create index jobs_kept on jobs (finished_at + ttl_us) where ttl_us is not null and result is not null;

create table attempts (                          -- failed attempts only
    seq integer not null,
    attempt integer not null,
    session integer not null,
    at integer not null,
    error blob not null,
    primary key (seq, attempt)
) strict, without rowid;

create table counters (
    lane integer not null,
    state integer not null,
    n integer not null,
    primary key (lane, state)
) strict, without rowid;

create table idempotency (
    principal text not null,
    scope text not null,
    key text not null,
    body blob not null,
    ids blob not null,                           -- 16 bytes each
    at integer not null,
    primary key (principal, scope, key)
) strict, without rowid;
create index idempotency_age on idempotency (at);

create table uniques (                           -- the newest job of each unique key
    key blob primary key,
    seq integer not null,
    states integer not null,                     -- a bit for each state in which it holds its key
    until integer                                -- null: without an end
) strict, without rowid;

create table paused (
    queue text primary key,
    at integer not null
) strict, without rowid;

create table tasks (
    lane integer primary key autoincrement,
    queue text not null,
    name text not null,
    signature blob not null,
    options blob not null,
    offered_at integer not null,
    unique (queue, name)
) strict;

create table sessions (
    number integer primary key autoincrement,
    id blob not null unique,
    name text not null,
    begun_at integer not null
) strict;

create table meta (
    key text primary key,
    value integer not null
) strict, without rowid;
