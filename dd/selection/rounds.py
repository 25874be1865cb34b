"""Repeated random subsets, redrawn every round (RS2: Okanovic et al., ICLR 2024, arXiv:2305.18424)."""

import torch
from torch import Generator, Tensor


def with_replacement(n: int, k: int, rounds: int, generator: Generator) -> Tensor:
    """Draw every round independently: an image may return in any later round, but is in a round at most once.

    Args:
        n: number of images.
        k: images per round, 0 to n.
        rounds: number of rounds.
        generator: a CPU generator.

    Returns:
        (rounds, k) int64 indices below n, ascending within a round.
    """
    drawn = [torch.randperm(n, generator=generator)[:k] for _ in range(rounds)]
    return torch.stack(drawn).sort(1).values


def without_replacement(n: int, k: int, rounds: int, generator: Generator) -> Tensor:
    """Read permutations of all images, one after another, in chunks of k: no image returns before all had their turn.

    A round may begin with the last images of one permutation and end with the first of the next, which are drawn
    from the other images, so that every round has k different images.  (The official code's rounds at the end of a
    permutation have k - 1 images.)

    Args:
        n: number of images.
        k: images per round, 0 to n.
        rounds: number of rounds.
        generator: a CPU generator.

    Returns:
        (rounds, k) int64 indices below n, in the order of the permutations: if read row by row, every n consecutive
        entries from a multiple of n on are a permutation.
    """
    stream = torch.empty(0, dtype=torch.int64)
    while len(stream) < rounds * k:
        begun = stream[len(stream) - len(stream) % k :]  # of the round that the next permutation completes
        following = torch.randperm(n, generator=generator)
        seen = torch.isin(following, begun)
        fresh = following[~seen]
        first, rest = fresh[: k - len(begun)], torch.cat([fresh[k - len(begun) :], following[seen]])
        rest = rest[torch.randperm(len(rest), generator=generator)]
        stream = torch.cat([stream, first, rest])
    return stream[: rounds * k].view(rounds, k)
