"""The targets of `faults/fuzz` hold for whatever hypothesis thinks of; atheris thinks longer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyjobs.domain.cloning import describe
from easyjobs.domain.signature import encode
from easyjobs.protocol.codec import encode as frame
from faults.fuzz.targets import TARGETS
from tests.protocol.examples import FROM_PEER


def sample(a: int, b: list[str] | None = None) -> None: ...


SEEDS = [
    *(frame(each) for each in FROM_PEER.values()), encode(describe(sample)) + b'\xff{"run_after":"x","schedule":["* * * * *"]}',
    b'{"a":1,"rest":[1.5],"when":"2027-01-01T00:00:00Z"}', b'{"type":"E","message":"m"}', b'[{"name":"f","args":[1],"kwargs":{}}]',
    b"*/5 2 * * 1-5|Europe/Berlin", b"",
]  # fmt: skip


@st.composite
def near(draw: st.DrawFn) -> bytes:
    """A seed with some bytes changed, cut or doubled."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):
            data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=5))
        else:
            data[at:at] = data[draw(st.integers(0, len(data))) :]
    return bytes(data[:100_000])


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_raises_nothing_but_what_it_names(name: str) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=near() | st.binary(max_size=300))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    for seed in SEEDS:
        TARGETS[name](seed)
    run()
