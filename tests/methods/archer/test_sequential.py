"""The engine beside a sequential reference that shares nothing: equal tokens, and losses equal to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.archer_iteration import LOSSES, Pair, make_model, work


@pytest.mark.parametrize("vocabulary", [300, 1200])
def test_the_same_noise_gives_the_same_tokens_and_losses(tmp_path: Path, vocabulary: int) -> None:
    make_model(tmp_path, vocabulary, width=32)
    pair = Pair(tmp_path, work(candidates=3, decisions=2, tokens=104, minibatches=2, batch=3, fill=6))
    try:
        pair.fill()
        for number in (1, 2):
            ours, theirs = pair.compare(number)
            for name in LOSSES:
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5, rel=1e-4), name
    finally:
        pair.close()
    assert pair.said == pair.theirs.said
    assert sum(len(tokens) for group in pair.said for tokens in group) > 50
