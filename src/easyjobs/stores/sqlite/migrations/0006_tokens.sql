-- Tokens that were made over the API, and those that were taken back. A token itself is never stored.

create table tokens (
    id text primary key,
    name text not null,
    scopes text not null,                        -- "": it was made elsewhere, and taken back here
    expires_at integer not null,                 -- 0: never
    created_at integer not null,
    revoked_at integer
) strict, without rowid;
