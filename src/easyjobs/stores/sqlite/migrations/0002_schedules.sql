-- Schedules and their ticks. No plain job touches any of these.

create table schedules (
    id integer primary key autoincrement,        -- never used again: a tick of a schedule that is gone is never taken for another's
    lane integer not null,
    expression text not null,
    timezone text not null,
    args blob not null,                          -- JSON [args, kwargs], of each of its jobs
    catch_up text not null,
    window_us integer not null,
    overlap text not null,
    version integer not null default 1,          -- + 1 when the code changes it
    next_at integer,                             -- the first tick that nothing was decided about; null: there are no more
    paused_at integer,
    last_tick integer,
    last_seq integer                             -- its latest job
) strict;

create index schedules_of_a_lane on schedules (lane);
create index schedules_due on schedules (next_at) where paused_at is null;

create table ticks (
    schedule integer not null,
    tick integer not null,                       -- a whole second; what was run by hand lies between two
    seq integer,                                 -- its job; null: there was none, as an earlier one was not final
    live integer not null default 0,             -- 1: its job may not be final
    primary key (schedule, tick)                 -- a schedule fires once per tick
) strict, without rowid;

create index ticks_live on ticks (schedule, tick) where live = 1;
create index ticks_age on ticks (tick);
