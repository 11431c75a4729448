"""What is measured: the same pieces of work for every engine, and what an engine answers."""

from dataclasses import asdict, dataclass

WEIGHTS = ("q8_0", "q4_0", "q4_k_m", "mxfp4", "bf16")


@dataclass(frozen=True)
class Work:
    """`tokens` tokens in each of `batch` sequences that have `context` tokens in their cache already."""

    phase: str  # "prefill": all tokens at once; "decode": one after the other
    batch: int
    context: int
    tokens: int

    @property
    def name(self):
        if self.phase == "prefill":
            return f"prefill, {self.tokens} tokens"
        return f"decode, batch {self.batch}, after {self.context}"

    def as_json(self):
        return asdict(self)


@dataclass(frozen=True)
class Figure:
    """Tokens per second over all sequences, or None and the reason why there is no such figure."""

    tok_s: float | None
    reason: str | None = None

    def as_json(self):
        return asdict(self)


def refused(reason):
    return Figure(None, reason)


def chosen_work(prompt, generate, batches, context, depth):
    """Decoding starts after `context` tokens for all engines, so that no one has a shorter cache to read."""
    work = [Work("prefill", 1, 0, prompt)]
    work += [Work("decode", batch, context, generate) for batch in batches]
    if depth:
        work.append(Work("decode", 1, depth, generate))
    return work
