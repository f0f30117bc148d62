-- What running jobs show of themselves. A job that shows nothing has no row in any of these tables.

create table seen (
    seq integer primary key,                     -- of jobs
    mark_attempt integer,                        -- the newest progress, and whose it is
    done any,                                    -- an integer or a real, as the task gave it
    total any,
    message text,
    marked_at integer,
    lines integer not null default 0,            -- domain.seeing.Ledger
    bytes integer not null default 0,
    dropped integer not null default 0,
    last_attempt integer not null default 0,
    last_number integer not null default 0
) strict;

create table logs (
    seq integer not null,
    attempt integer not null,
    number integer not null,
    at integer not null,                         -- by the worker's clock
    level integer not null,
    logger text not null,
    text text not null,
    primary key (seq, attempt, number)
) strict, without rowid;

-- Jobs that were deleted and whose lines are still there: the pruner takes them away in small pieces, since one job may have thousands.
create table forgotten (
    seq integer primary key
) strict;

create table traces (                            -- not a column: plain jobs would pay for it at each claim
    seq integer primary key,
    traceparent text not null                    -- W3C Trace Context of whoever submitted the job
) strict;

create trigger jobs_forgotten after delete on jobs begin
    delete from traces where seq = old.seq;
    insert into forgotten(seq) select seq from seen where seq = old.seq;
end;
