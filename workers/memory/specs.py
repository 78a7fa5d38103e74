"""Plain, hashable descriptions of memories: what crosses process boundaries and what is written to files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Heads = Literal["even", "ragged"]
Choice = Literal["network", "snapkv", "h2o"]


MOST_TOKENS = 2**31
"""Positions are counted in 32 bits."""
LARGEST = 3.4028234663852886e38
"""The largest number of float32, in which a memory computes."""
LOOKAHEAD_FEATURES = 2
"""Features that a look ahead adds: of the token, and of its neighbourhood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NammSettings:
    """The architecture of a Neural Attention Memory Model; the defaults are the published ones (arXiv 2410.13166)."""

    update_every: int = 512
    """Tokens between two updates (the published ``memory_policy_fixed_delay``); a multiple of ``hop``."""
    window: int = 32
    """Length of the spectrogram's Hann window, in tokens."""
    hop: int = 16
    """Tokens between two frames of the spectrogram; ``window`` is twice the hop."""
    ema: float = 0.99
    """Decay of the moving average over frames, per token."""
    hidden_size: int = 32
    """Width of the scorer's attention layer."""
    recency_size: int = 8
    """Features of the recency embedding; even."""
    max_frequency: float = 50_000.0
    """Longest wavelength of the recency embedding, in tokens over 2 pi."""
    heads: Heads = "even"
    """``even``: all KV heads of a layer keep as many tokens as the greediest (published). ``ragged``: each its own."""
    cap: int | None = None
    """Most tokens that a KV head may keep at an update; None for no cap."""
    layout: tuple[int, int] | None = None
    """Layers of the model and KV heads of each: what a genome that knows them apart is made for. None (published): the
    memory fits any model, and tells heads apart by their attention alone."""
    offsets: bool = False
    """Whether a gene for each layer and KV head is added to its importances, so that the network is free to choose
    tokens; needs ``layout``."""
    lookahead: int = 0
    """Newest queries whose attention the scorer reads beside the spectrum, at most ``hop``; 0 (published) for none."""
    choice: Choice = "network"
    """What orders the tokens of a head. ``network`` (published): the scorer. ``snapkv`` and ``h2o``: that heuristic,
    and the genome holds nothing but how much each layer and KV head keeps; needs ``layout``."""

    def __post_init__(self) -> None:
        self._check_types()
        if self.hop < 1 or self.window != 2 * self.hop:
            raise ValueError(f"memory.window must be twice memory.hop: got window {self.window}, hop {self.hop}")
        if self.update_every < 1 or self.update_every % self.hop:
            raise ValueError(
                f"memory.update_every must be a positive multiple of memory.hop ({self.hop}): got {self.update_every}"
            )
        if not 0.0 < self.ema < 1.0:
            raise ValueError(f"memory.ema must lie between 0 and 1: got {self.ema}")
        if self.hidden_size < 1:
            raise ValueError(f"memory.hidden_size must be at least 1: got {self.hidden_size}")
        if self.recency_size < 2 or self.recency_size % 2:
            raise ValueError(f"memory.recency_size must be even and at least 2: got {self.recency_size}")
        if not 1.0 < self.max_frequency <= LARGEST:
            raise ValueError(f"memory.max_frequency must be a finite number above 1: got {self.max_frequency}")
        if self.heads not in ("even", "ragged"):
            raise ValueError(f"memory.heads must be 'even' or 'ragged': got {self.heads!r}")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"memory.cap must be at least 1 or null: got {self.cap}")
        self._check_token_choice()

    def _check_types(self) -> None:
        """Files and callers may bring anything, and what is no number of its kind would evict without a word."""
        whole = {name: getattr(self, name) for name in ("update_every", "window", "hop", "hidden_size", "recency_size")}
        for name, value in {**whole, "lookahead": self.lookahead, "cap": self.cap or 0}.items():
            if type(value) is not int or value >= MOST_TOKENS:
                raise ValueError(f"memory.{name} must be a whole number below {MOST_TOKENS:,}: got {value!r}")
        for name in ("ema", "max_frequency"):
            if type(getattr(self, name)) not in (int, float):
                raise ValueError(f"memory.{name} must be a number: got {getattr(self, name)!r}")
        if type(self.offsets) is not bool:
            raise ValueError(f"memory.offsets must be true or false: got {self.offsets!r}")

    def _check_token_choice(self) -> None:
        if self.choice not in get_args(Choice):
            raise ValueError(f"memory.choice must be one of {', '.join(get_args(Choice))}: got {self.choice!r}")
        if not 0 <= self.lookahead <= self.hop:
            raise ValueError(f"memory.lookahead must be from 0 to memory.hop ({self.hop}): got {self.lookahead}")
        if self.choice != "network" and (self.offsets or self.lookahead):
            raise ValueError(
                f"memory.choice {self.choice} has no network: leave memory.offsets and memory.lookahead out, or choose "
                "network"
            )
        if self.layout is not None and not _is_layout(self.layout):
            raise ValueError(f"memory.layout must be layers and KV heads, as in [6, 3], or null: got {self.layout}")
        needs_layout = self.offsets or self.choice != "network"
        if needs_layout and self.layout is None:
            what = "memory.offsets" if self.offsets else f"memory.choice {self.choice}"
            raise ValueError(
                f"memory.layout must be the model's layers and KV heads, as in [6, 3], with {what}: got null"
            )
        if self.layout is not None and not needs_layout:
            raise ValueError("memory.layout must be null without memory.offsets: the network does not read it")

    @property
    def num_bins(self) -> int:
        """Frequencies of the one-sided spectrum."""
        return self.window // 2 + 1

    @property
    def num_features(self) -> int:
        """Features per cached token: recency first, then the spectrum, then what the newest queries say."""
        return self.recency_size + self.num_bins + (LOOKAHEAD_FEATURES if self.lookahead else 0)

    @property
    def num_heads(self) -> int:
        """KV heads of all layers that have genes of their own."""
        return self.layout[0] * self.layout[1] if self.layout else 0

    @property
    def genome_size(self) -> int:
        """Length of the flat genome (spec 4): 4,172 with the published settings.

        The network's numbers come first, those of the heads last, layer by layer.
        """
        return self.network_size + self.num_heads

    @property
    def network_size(self) -> int:
        """Numbers of the scorer."""
        if self.choice != "network":
            return 0
        f, h = self.num_features, self.hidden_size
        return f * 3 * h + 3 * h + h * 2 * f + 2 * f + f + 1


def _is_layout(value: object) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2
    return is_pair and all(type(size) is int and 1 <= size < MOST_TOKENS for size in value)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Frozen feature statistics of a full-cache pass (spec 3.3): an input to the memory, recorded by hash."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]

    def is_sound(self, num_bins: int) -> bool:
        """Whether these are so many means and variances, finite in float32."""
        is_complete = len(self.mean) == len(self.variance) == num_bins
        is_finite = all(abs(value) <= LARGEST for value in self.mean + self.variance)
        return is_complete and is_finite and min(self.variance) >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NammSpec:
    """An evolved memory without its genome; ``normalisation`` None uses raw features."""

    settings: NammSettings
    normalisation: Normalisation | None = None
    threshold: float | tuple[float, ...] = 0.0
    """The dial: importance from which a token is kept, one for all genomes of a block or one for each; published: 0.

    Not one of the settings, because a memory is evolved at 0 and turned afterwards: the hash of a run knows nothing of
    it.
    """

    def __post_init__(self) -> None:
        thresholds = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        if not all(abs(threshold) <= LARGEST for threshold in thresholds):
            raise ValueError(f"the threshold of a memory must be finite, in float32 as well: got {self.threshold}")


RivalName = Literal["full", "recent", "h2o", "l2norm", "random", "snapkv", "tova", "truncation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalSpec:
    """A heuristic memory. ``budget``: most tokens held after an update, by layer and KV head; empty for ``full``."""

    name: RivalName
    update_every: int = 512
    budget: tuple[tuple[int, ...], ...] = ()
    seed: int = 0


MemorySpec = NammSpec | RivalSpec


def for_candidates(memory: MemorySpec, block: slice) -> MemorySpec:
    """The same memory for some genomes of a block only: each keeps its own threshold."""
    if isinstance(memory, NammSpec) and isinstance(memory.threshold, tuple):
        return replace(memory, threshold=memory.threshold[block])
    return memory
