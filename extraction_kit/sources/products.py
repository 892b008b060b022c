"""The largest products of one matrix's rows with another's: exact, in bounded memory.

Float32 finds candidates, float64 ranks them, so that neither the size of a block nor the
number of threads nor the device has a part in what is found.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from extraction_kit.sources import onednn
from extraction_kit.sources.devices import statistics_device

BLOCK_ELEMENTS = 2**24
"""Numbers in a block: 64 MiB in float32."""
SPARE = 8
"""Candidates beyond those that are wanted."""
_AT_ONCE = 2**19  # numbers of candidates in float64: few, for fresh memory is slow

Largest = tuple[Int64[Tensor, "row k"], Float32[Tensor, "row k"]]
"""Indices of the others and the products with them, largest first."""


class Products:
    """Finds, for each of some rows, the others with the largest products.

    The product of a row with other j is ``(row . others[j]) * scale[j]``, summed in float64
    and rounded to float32; equal ones are ordered by j. To find the candidates, all products
    are computed once in float32. Where its rounding error (at most (width + 8) / 2^24 times
    the norms of both) leaves a doubt whether one that is wanted is among them, as with many
    equal others, that row is done again in float64.

    Cost: 2 n m width operations for n rows and m others: what encoding m tokens with n
    features costs. Memory: about three blocks of 64 MiB, whatever n, m and width are.

    Parameters
    ----------
    others : Tensor [other, width]
        Of any floating type, on any device; not copied.
    k : int
        How many are wanted, at most as many as there are.
    device : torch.device
        What computes.
    scale : Tensor float64 [other], optional
        Ones if None.
    block_elements : int
        Numbers in a block; changes the memory, not the result.
    """

    def __init__(
        self,
        others: Float[Tensor, "other width"],
        *,
        k: int,
        device: torch.device,
        scale: Float64[Tensor, " other"] | None = None,
        block_elements: int = BLOCK_ELEMENTS,
    ) -> None:
        n_others, width = others.shape
        self._others, self._device, self._k = others, device, k
        self._exact_device = statistics_device(device)
        ones = torch.ones(n_others, dtype=torch.float64)
        self._scale = (ones if scale is None else scale).to(self._exact_device)
        self._scale32 = self._scale.to(torch.float32).to(device)
        self._n_candidates = min(k + SPARE, n_others)
        # Other j is member j // n_groups of group j % n_groups. Only the groups with the
        # largest maxima are sorted: as many numbers as there are groups, when balanced.
        self._n_groups = math.ceil(math.sqrt(self._n_candidates * n_others))
        self._n_groups = min(self._n_groups, n_others)
        self._n_members = -(-n_others // self._n_groups)
        padded = self._n_groups * self._n_members
        self.n_rows = max(1, block_elements // padded)
        """Rows that are done at once."""
        self._step = max(1, block_elements // (2 * width))
        self._scores = torch.empty((0, padded))
        self._by_onednn = onednn.is_faster(device, torch.float32)
        longest = [
            torch.linalg.vector_norm(self._there(part), dim=1) * self._scale32[span]
            for span, part in self._parts()
        ]
        self._error = (width + 8) * 2.0**-24 * float(torch.cat(longest).max())

    def largest(
        self, rows: Float64[Tensor, "row width"], *, and_smallest: bool = False
    ) -> list[Largest]:
        """Return the k others with the largest products with each of at most `n_rows` rows.

        With `and_smallest`, also those with the smallest, smallest first.
        """
        rows = rows.to(self._exact_device)
        scores = self._score(rows)
        found = [self._ranked(rows, scores)]
        if and_smallest:
            index, value = self._ranked(-rows, scores.neg_())
            found.append((index, -value))
        return found

    # --- all products, in float32 ---

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, self._others.shape[0], self._step):
            span = slice(first, first + self._step)
            yield span, self._others[span]

    def _there(self, part: Tensor) -> Float32[Tensor, "some width"]:
        return part.to(self._device, torch.float32)

    def _exact(self, part: Tensor) -> Float64[Tensor, "*some width"]:
        return part.to(self._exact_device).to(torch.float64)

    def _score(self, rows: Tensor) -> Float32[Tensor, "row padded"]:
        if self._scores.shape[0] < rows.shape[0]:
            shape = (rows.shape[0], self._scores.shape[1])
            self._scores = torch.empty(shape, device=self._device)
        scores = self._scores[: rows.shape[0]]
        rows = rows.to(torch.float32).to(self._device)
        for span, part in self._parts():
            into = scores[:, span][:, : part.shape[0]]
            if self._by_onednn:
                into.copy_(onednn.linear(rows, self._there(part), None))
            else:
                torch.mm(rows, self._there(part).T, out=into)
        scores[:, : len(self._scale32)] *= self._scale32
        return scores

    def _candidates(
        self, scores: Float32[Tensor, "row padded"]
    ) -> tuple[Int64[Tensor, "row n"], Float32[Tensor, " row"]]:
        """Return candidates, and what no other one's float32 product is above."""
        scores[:, self._others.shape[0] :] = -math.inf
        groups = scores.view(-1, self._n_members, self._n_groups)
        best = groups.amax(1).topk(min(self._n_candidates, self._n_groups)).indices
        members = groups.gather(2, best[:, None].expand(-1, self._n_members, -1))
        top = members.flatten(1).topk(self._n_candidates)
        member = torch.div(top.indices, best.shape[1], rounding_mode="floor")
        group = best.gather(1, top.indices - member * best.shape[1])
        return member * self._n_groups + group, top.values[:, -1]

    # --- the candidates, in float64 ---

    def _ranked(self, rows: Float64[Tensor, "row width"], scores: Tensor) -> Largest:
        index, bound = self._candidates(scores)
        index, bound = index.to(self._exact_device), bound.to(self._exact_device)
        index = index.sort(dim=1).values
        exact = self._products(rows, index)
        index, value = _first(exact, index, self._k)
        if self._n_candidates < self._others.shape[0]:
            doubt = torch.nonzero(self._doubt(rows, value, bound)).squeeze(1)
            step = max(1, self.n_rows // 8)
            for first in range(0, len(doubt), step):
                some = doubt[first : first + step]
                index[some], value[some] = self._in_full(rows[some])
        return index, value

    def _products(
        self, rows: Float64[Tensor, "row width"], index: Int64[Tensor, "row n"]
    ) -> Float64[Tensor, "row n"]:
        exact = torch.empty(index.shape, dtype=torch.float64, device=rows.device)
        step = max(1, _AT_ONCE // (self._n_candidates * rows.shape[1]))
        for first in range(0, len(rows), step):
            some = slice(first, first + step)
            near = self._exact(self._others[index[some].to(self._others.device)])
            torch.bmm(near, rows[some, :, None], out=exact[some, :, None])
        return exact.mul_(self._scale[index])

    def _doubt(self, rows: Tensor, value: Tensor, bound: Tensor) -> Bool[Tensor, " row"]:
        error = torch.linalg.vector_norm(rows, dim=1) * self._error
        doubt: Tensor = value[:, -1] <= (bound.double() + error).float()
        return doubt

    def _in_full(self, rows: Float64[Tensor, "row width"]) -> Largest:
        exact = torch.cat(
            [
                rows @ self._exact(part).T * self._scale[span]
                for span, part in self._parts()
            ],
            dim=1,
        )
        every = torch.arange(exact.shape[1], device=exact.device)
        return _first(exact, every.expand_as(exact), self._k)


def _first(
    exact: Float64[Tensor, "row n"], index: Int64[Tensor, "row n"], k: int
) -> Largest:
    """Return the `k` largest; of equal ones those that come first."""
    value, order = exact.to(torch.float32).sort(dim=1, descending=True, stable=True)
    return index.gather(1, order[:, :k]), value[:, :k].clone()
