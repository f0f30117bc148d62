-- What running jobs show of themselves, as in stores/sqlite/migrations/0003_seeing.sql. A job that shows nothing has no row in these tables.
-- Texts are bytes (UTF-8): what a task prints may hold a NUL, which `text` cannot.

create table easyjobs.seen (
    seq bigint primary key,                      -- of jobs
    progress bytea,                              -- the newest, of whichever attempt: domain.seeing.Progress as msgpack
    lines bigint not null default 0,             -- domain.seeing.Ledger
    bytes bigint not null default 0,
    dropped bigint not null default 0,
    last_attempt bigint not null default 0,
    last_number bigint not null default 0
) with (fillfactor = 70);

create table easyjobs.logs (
    seq bigint not null,
    attempt integer not null,
    number bigint not null,
    at bigint not null,                          -- by the worker's clock
    level bigint not null,
    logger bytea not null,
    text bytea not null,
    primary key (seq, attempt, number)
);

-- Jobs that were deleted and whose lines are still there: the pruner takes them away in small pieces, since one job may have thousands.
create table easyjobs.forgotten (
    seq bigint primary key
);

alter table easyjobs.jobs add column traceparent text; -- W3C Trace Context of whoever submitted the job; a null takes no room in the row
