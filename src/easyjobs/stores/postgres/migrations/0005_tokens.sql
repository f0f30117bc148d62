-- Tokens that were made over the API, and those that were taken back. A token itself is never stored.

create table easyjobs.tokens (
    id text primary key,
    name text not null,
    scopes text not null,                        -- "": it was made elsewhere, and taken back here
    expires_at bigint not null,                  -- 0: never
    created_at bigint not null,
    revoked_at bigint
);
