-- Ends of jobs that are told to a queue of a broker. A job whose end is told to nobody has no row in any of these tables.

create table replies (
    seq integer primary key,                     -- of jobs
    broker text not null,
    queue text not null,
    correlation text                             -- null: the job's id
) strict;

create table outbox (                            -- written by the transaction that ends the job, deleted when the broker has confirmed
    id integer primary key autoincrement,
    broker text not null,
    queue text not null,
    correlation text,
    at integer not null,
    job blob not null,                           -- its id
    lane integer not null,
    state integer not null,
    attempt integer not null,
    body blob not null                           -- a copy: results are pruned, pulled and deleted meanwhile
) strict;

create index outbox_by_broker on outbox (broker, id);

drop trigger jobs_forgotten;
create trigger jobs_forgotten after delete on jobs begin
    delete from traces where seq = old.seq;
    delete from replies where seq = old.seq;
    insert into forgotten(seq) select seq from seen where seq = old.seq;
end;
