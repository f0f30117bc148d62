-- Submits within users' own transactions, by whatever driver, in a process that is no manager. See stores/postgres/enlist.py.
--
-- The transaction may stay open for long, and nobody may have to wait for it: so its jobs are counted in rows of their own, under a manager's
-- number that no manager has (- the job's seq), which managers fold into theirs. The NOTIFY is delivered by the user's COMMIT.
--
-- `security definer`: an application's role needs no right to write to our tables, only to execute this.

create function easyjobs.bear(job jsonb, parent bigint, depth integer, at bigint) returns bytea
    language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
<<own>>
declare
    id bytea := decode(job ->> 'id', 'base64');
    key bytea := decode(job ->> 'unique_key', 'base64');
    due bigint := (job ->> 'run_at')::bigint;
    expires_us bigint := (job ->> 'expires_us')::bigint;
    priority integer := (job ->> 'priority')::integer;
    befores jsonb := coalesce(job -> 'befores', '[]');
    state smallint := case when befores <> '[]' then 7 when due > at then 6 else 0 end;
    held bytea;
    seq bigint;
begin
    if key is not null then
        select j.id into held from easyjobs.uniques u join easyjobs.jobs j on j.seq = u.seq
            where u.key = own.key and (u.states >> j.state) & 1 = 1 and (u.until is null or u.until > at);
        if found then
            return held;
        end if;
    end if;
    insert into easyjobs.jobs(id, lane, state, rank, max_retries, max_crashes, priority, run_at, timeout_us, expires_at, ttl_us, created_at,
            args, parent_seq, edge, parent_round, depth, unique_key)
        values (own.id, (job ->> 'lane')::integer, own.state, coalesce(due, at) - own.priority * 60000000::bigint,
            (job ->> 'max_retries')::integer, (job ->> 'max_crashes')::integer, own.priority, due, (job ->> 'timeout_us')::bigint,
            at + expires_us, (job ->> 'ttl_us')::bigint, at, decode(job ->> 'args', 'base64'), parent, job ->> 'edge',
            case when parent is null then null else 1 end, bear.depth, own.key)
        returning jobs.seq into own.seq;
    insert into easyjobs.counters(manager, lane, state, n) values (- own.seq, (job ->> 'lane')::integer, own.state, 1);
    if key is not null then
        insert into easyjobs.uniques(key, seq, states, until)
            values (own.key, own.seq, (job ->> 'unique_states')::integer, at + (job ->> 'unique_us')::bigint)
            on conflict on constraint uniques_pkey do update set seq = excluded.seq, states = excluded.states, until = excluded.until;
    end if;
    for i in 0 .. jsonb_array_length(befores) - 1 loop
        perform easyjobs.bear(befores -> i, own.seq, bear.depth + 1, at);
    end loop;
    return id;
end $$;

-- `request`: {"began": the transaction's start as it was seen before, "locks": [...], "job": {...}, "key": null | {...}, "hint": "…"}.
-- Returns {"verdict": domain.job.SubmitVerdict, "id": …}; verdict -1: this is another transaction than the one that was looked at before.
create function easyjobs.submit(request text) returns text
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
<<own>>
declare
    asked jsonb := request;
    key jsonb := asked -> 'key';
    id bytea := decode(asked -> 'job' ->> 'id', 'base64');
    at bigint := floor(extract(epoch from clock_timestamp()) * 1000000);
    born bytea;
    known record;
begin
    if asked ->> 'began' <> extract(epoch from transaction_timestamp())::text then
        return '{"verdict": -1}';
    end if;
    for i in 0 .. jsonb_array_length(asked -> 'locks') - 1 loop
        perform pg_advisory_xact_lock((asked -> 'locks' ->> i)::bigint);
    end loop;
    if key <> 'null' then
        insert into easyjobs.idempotency(principal, scope, key, body, ids, at)
            values (own.key ->> 'principal', own.key ->> 'scope', own.key ->> 'key', decode(own.key ->> 'body', 'base64'), own.id, own.at)
            on conflict on constraint idempotency_pkey do nothing;
        if not found then
            select i.body, i.ids into known from easyjobs.idempotency i
                where i.principal = own.key ->> 'principal' and i.scope = own.key ->> 'scope' and i.key = own.key ->> 'key';
            if known.body = decode(key ->> 'body', 'base64') then
                return json_build_object('verdict', 1, 'id', encode(known.ids, 'base64'));
            end if;
            return '{"verdict": 2}';
        end if;
    end if;
    born := easyjobs.bear(asked -> 'job', null, 0, at);
    if born <> id then
        update easyjobs.idempotency i set ids = born
            where i.principal = own.key ->> 'principal' and i.scope = own.key ->> 'scope' and i.key = own.key ->> 'key';
        return json_build_object('verdict', 1, 'id', encode(born, 'base64'));
    end if;
    if asked ->> 'hint' is not null then
        perform pg_notify('easyjobs', asked ->> 'hint');
    end if;
    return json_build_object('verdict', 0, 'id', encode(born, 'base64'));
end $$;

revoke all on function easyjobs.bear(jsonb, bigint, integer, bigint) from public;
revoke all on function easyjobs.submit(text) from public;
