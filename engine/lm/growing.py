"""Completions in the making: what every sampler does with a token once it has it.

A row's tokens become text, the user's functions are asked about all of it at once, and the first of split, done,
eos and length ends it. Where tokens come from is the samplers' business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from engine.lm.detokenise import Detokeniser, Row
from engine.lm.noise import NoiseKey
from engine.lm.sampler import Completion, Finish, SamplingParams
from engine.runtime.context import Stops


@dataclass
class Growing:
    """One completion in the making."""

    row: Row
    budget: int
    """The most tokens it may have."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: Finish | None = None
    done: bool = False

    def completion(self) -> Completion:
        text = "".join(self.pieces) + self.row.flush()
        return Completion(self.ids, self.logps, text, self.finish or "length", self.done)


class Growth:
    """`n` completions of each prompt, growing under the user's functions, which hear of the rows while it is open.

    Row `i` completes prompt `i // n`. Raises ValueError for a call that makes no sense.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        *,
        detokeniser: Detokeniser,
        decode: Callable[[Sequence[int]], str],
        stops: Stops | None,
        noise: Sequence[NoiseKey] | None,
    ) -> None:
        if noise is not None and len(noise) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many noise keys, not {len(noise)}")
        if noise is None and params.temperature > 0 and prompts and n > 0:
            raise ValueError("sampling at a temperature above 0 needs noise keys")
        self._prompts, self._n, self._params, self._decode, self._stops = prompts, n, params, decode, stops
        self.rows = [Growing(detokeniser.open(), budget(prompt, params)) for prompt in prompts for _ in range(n)]

    def __enter__(self) -> Growth:
        if self._stops is not None:
            for i, prompt in enumerate(self._prompts):
                self._stops.open_many(list(range(i * self._n, (i + 1) * self._n)), self._decode(prompt))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stops is not None:
            self._stops.close(list(range(len(self.rows))))

    @property
    def longest(self) -> int:
        """The most tokens that any completion may have."""
        return max((row.budget for row in self.rows), default=0)

    def append(self, alive: Sequence[int], ids: Sequence[int], logps: Sequence[float]) -> None:
        """Give each living row its token and see which of them are thereby finished."""
        eos = self._params.eos
        pieces = []
        for row, token, logp in zip(alive, ids, logps, strict=True):
            state = self.rows[row]
            piece = state.row.push(token)
            if len(state.ids) + 1 >= state.budget or token in eos:
                piece += state.row.flush()
            state.ids.append(token)
            state.logps.append(logp)
            state.pieces.append(piece)
            pieces.append(piece)
        self._judge(
            alive,
            pieces,
            [
                "eos" if token in eos else "length" if len(self.rows[row].ids) >= self.rows[row].budget else None
                for row, token in zip(alive, ids, strict=True)
            ],
        )

    def hear(self, alive: Sequence[int], pieces: Sequence[str], ends: Sequence[Finish | None]) -> None:
        """The same for rows of which only text is known; `ends` says which of them the model itself has ended."""
        for row, piece in zip(alive, pieces, strict=True):
            self.rows[row].pieces.append(piece)
        self._judge(alive, pieces, ends)

    def _judge(self, alive: Sequence[int], pieces: Sequence[str], ends: Sequence[Finish | None]) -> None:
        """Ask the user's functions about every row; what they say goes before what ended it otherwise."""
        said = self._stops.extend(alive, pieces) if self._stops is not None else [(False, False)] * len(pieces)
        for row, end, (split, done) in zip(alive, ends, said, strict=True):
            state = self.rows[row]
            state.done = done
            state.finish = "split" if split else "done" if done else end

    def groups(self) -> list[list[Completion]]:
        """What became of every prompt."""
        whole = [row.completion() for row in self.rows]
        return [whole[i * self._n : (i + 1) * self._n] for i in range(len(self._prompts))]


def budget(prompt: Sequence[int], params: SamplingParams) -> int:
    """How many tokens a completion of this prompt may have."""
    if not prompt:
        raise ValueError("a prompt needs at least one token")
    room = params.max_new_tokens
    if params.max_length is not None:
        room = min(room, params.max_length - len(prompt))
    if room < 1:
        raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room below max_length {params.max_length}")
    return room
