from __future__ import annotations

import itertools
from typing import Any

import pytest

from easyjobs.errors import ProtocolError
from easyjobs.protocol.handshake import manager_proof, matches, peer_proof

GIVEN: dict[str, Any] = {"role": "worker", "session": b"s" * 16, "manager_nonce": b"m" * 32, "peer_nonce": b"p" * 32, "version": 1}


def test_both_sides_work_out_the_same_proof() -> None:
    assert matches(peer_proof("secret", **GIVEN), peer_proof("secret", **GIVEN))
    assert matches(manager_proof("secret", **GIVEN), manager_proof("secret", **GIVEN))


def test_the_proof_of_version_1_stays_what_it_is() -> None:
    assert peer_proof("secret", **GIVEN).hex() == PEER
    assert manager_proof("secret", **GIVEN).hex() == MANAGER


PEER = "5af4f92d5e65fce3226966697c0d74fa65fbc1b87465d1e1d5bcf5163bfd5c6c"
MANAGER = "0f7b93d06cbcd957ccf4ff60080dd832fe253ce6844953cb5dfca0de5b9299ab"


def test_whatever_differs_gives_another_proof() -> None:
    others: list[dict[str, Any]] = [
        {"role": "client"},
        {"session": b"t" * 16},
        {"manager_nonce": b"n" * 32},
        {"peer_nonce": b"q" * 32},
        {"version": 2},
    ]
    proofs = [peer_proof("secret", **GIVEN), manager_proof("secret", **GIVEN), peer_proof("Secret", **GIVEN)]
    proofs += [peer_proof("secret", **{**GIVEN, **other}) for other in others]
    assert not any(matches(one, other) for one, other in itertools.combinations(proofs, 2))


def test_a_proof_turned_round_is_no_proof_of_the_other_side() -> None:
    swapped = {**GIVEN, "manager_nonce": GIVEN["peer_nonce"], "peer_nonce": GIVEN["manager_nonce"]}
    assert not matches(manager_proof("secret", **GIVEN), peer_proof("secret", **GIVEN))
    assert not matches(manager_proof("secret", **GIVEN), peer_proof("secret", **swapped))


@pytest.mark.parametrize("field", ["manager_nonce", "peer_nonce", "session"])
@pytest.mark.parametrize("value", [b"", b"short", b"x" * 31, b"x" * 33, b"x" * 64])
def test_nonces_and_sessions_of_another_length_are_refused(field: str, value: bytes) -> None:
    for proof in (peer_proof, manager_proof):
        with pytest.raises(ProtocolError, match="bytes instead of"):
            proof("secret", **{**GIVEN, field: value})


def test_the_managers_own_nonce_sent_back_is_refused() -> None:
    with pytest.raises(ProtocolError, match="own nonce"):
        peer_proof("secret", **{**GIVEN, "peer_nonce": GIVEN["manager_nonce"]})


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        peer_proof("", **GIVEN)


@pytest.mark.parametrize("theirs", [b"", b"x", b"\0" * 32, b"\0" * 33])
def test_a_cut_or_longer_proof_does_not_match(theirs: bytes) -> None:
    assert not matches(peer_proof("secret", **GIVEN), theirs)
    assert not matches(b"", b"")
