"""What every store must do with tokens."""

from __future__ import annotations

from easyjobs.domain.tokens import Token
from easyjobs.ports.store import Store
from tests.clocks import FakeClock
from tests.contracts.store_contract import HOUR_US, StoreContract


class TokenContract(StoreContract):
    async def test_tokens_are_kept_newest_first(self, store: Store, clock: FakeClock) -> None:
        first, second = Token("a" * 16, "x", "read", 0), Token("b" * 16, "", "operate+read", clock.now() + HOUR_US, queues="BILLS+MAIL")
        assert await store.keep_tokens([first]) == [True]
        clock.advance(1)
        assert await store.keep_tokens([second, first]) == [True, False]
        found = await store.tokens()
        assert [(token.id, token.name, token.scopes, token.expires_at, token.queues) for token in found] == [
            (second.id, "", "operate+read", second.expires_at, "BILLS+MAIL"),
            (first.id, "x", "read", 0, ""),
        ]
        assert [token.created_at for token in found] == [clock.now(), clock.now() - 1_000_000]
        assert {token.revoked_at for token in found} == {None}

    async def test_a_token_is_taken_back_once_also_one_that_nobody_knows(self, store: Store, clock: FakeClock) -> None:
        known, unknown = Token("a" * 16, "x", "read", 0), Token("b" * 16, "", "", 0)
        await store.keep_tokens([known])
        at = clock.now()
        assert await store.revoke_tokens([known, unknown]) == [True, True]
        clock.advance(1)
        assert await store.revoke_tokens([known, unknown]) == [False, False]
        assert {(token.id, token.name, token.revoked_at) for token in await store.tokens()} == {(known.id, "x", at), (unknown.id, "", at)}

    async def test_a_token_that_was_taken_back_is_not_made_again(self, store: Store) -> None:
        await store.revoke_tokens([Token("a" * 16, "", "", 0)])
        assert await store.keep_tokens([Token("a" * 16, "x", "read", 0)]) == [False]
        assert [token.revoked_at is None for token in await store.tokens()] == [False]

    async def test_what_has_expired_is_forgotten(self, store: Store, clock: FakeClock) -> None:
        await store.keep_tokens([Token("a" * 16, "", "read", clock.now() + 1_000_000), Token("b" * 16, "", "read", 0)])
        clock.advance(2)
        await store.keep_tokens([])
        assert [token.id for token in await store.tokens()] == ["b" * 16]
