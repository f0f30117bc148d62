-- The queues that a token is bound to.

alter table tokens add column queues text not null default '';  -- names with '+' between; '': it reaches all of them
