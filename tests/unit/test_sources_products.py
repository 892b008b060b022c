"""The largest products are exactly those of a naive float64 computation, ties included."""

import numpy as np
import pytest
import torch

from extraction_kit.sources.products import Products
from tests.devices import DEVICE

ON = torch.device(DEVICE)


def random(n, width, *, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def naive(rows, others, k, scale=None):
    """Return indices and products in order of (product down, index up)."""
    scale = np.ones(len(others)) if scale is None else scale.numpy()
    every = (rows.numpy() @ others.double().numpy().T * scale).astype(np.float32)
    order = np.argsort(-every, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(every, order, axis=1)


def found_by(rows, others, k, **options):
    products = Products(others, k=k, device=ON, **options)
    parts = [
        products.largest(some, and_smallest=True)
        for some in torch.split(rows, products.n_rows)
    ]
    return [
        [torch.cat([part[end][i] for part in parts]).cpu().numpy() for i in (0, 1)]
        for end in (0, 1)
    ]


SIZES = [(50, 700, 24, 10), (9, 12, 5, 3), (3, 4, 2, 4), (2, 1, 3, 1), (40, 300, 8, 100)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_elements", [1, 2000, 2**24])
@pytest.mark.parametrize(("n", "m", "width", "k"), SIZES)
def test_both_ends_equal_naive_products(n, m, width, k, block_elements, dtype):
    rows, others = random(n, width).double(), random(m, width, seed=1).to(dtype)
    scale = random(m, 1, seed=2).abs().squeeze(1).double()
    top, bottom = found_by(rows, others, k, scale=scale, block_elements=block_elements)
    for found, wanted in (
        (top, naive(rows, others, k, scale)),
        (bottom, naive(-rows, others, k, scale)),
    ):
        np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(top[1], naive(rows, others, k, scale)[1])
    np.testing.assert_array_equal(-bottom[1], naive(-rows, others, k, scale)[1])


@pytest.mark.parametrize("block_elements", [500, 2**24])
def test_of_equal_products_the_first_are_found_however_many_there_are(block_elements):
    rows, others = random(30, 16).double(), random(400, 16, seed=1)
    others[100:250] = 3 * rows[0].float()  # far above all, in each block
    others[300:] = 0
    rows[7] = 0
    top, _ = found_by(rows, others, 10, block_elements=block_elements)
    wanted = naive(rows, others, 10)
    np.testing.assert_array_equal(top[0], wanted[0])
    assert top[0][0].tolist() == list(range(100, 110))
    assert top[0][7].tolist() == list(range(10))


def test_of_few_equal_products_the_first_comes_first():
    rows, others = torch.ones(1, 4).double(), random(400, 4)
    # 115 is in the group of 30, which so is looked at before that of 20
    others[115], others[30], others[20] = 300, 200, 200
    top, _ = found_by(rows, others, 10)
    assert top[0][0, :3].tolist() == [115, 20, 30]


def test_differences_that_float32_cannot_see_decide():
    # equal but for a last number that no float32 sum of these keeps
    rows = torch.tensor([[1e8, 1.0]], dtype=torch.float64)
    others = torch.stack([torch.ones(64), torch.linspace(0, 1e9, 64)], dim=1)
    others[:, 0] = -others[:, 1] * 1e-8  # the products cancel
    others[17, 1] += 2**12
    top, bottom = found_by(rows, others, 3)
    np.testing.assert_array_equal(top[0], naive(rows, others, 3)[0])
    np.testing.assert_array_equal(bottom[0], naive(-rows, others, 3)[0])


def test_no_more_is_held_than_a_few_blocks(monkeypatch):
    sizes = []
    real = torch.empty

    def watch(*args, **options):
        made = real(*args, **options)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "empty", watch)
    others = random(5000, 8)
    products = Products(others, k=4, device=ON, block_elements=2**16)
    assert products.n_rows * 5000 <= 2**16
    products.largest(random(products.n_rows, 8).double())
    assert max(sizes) <= 2**16
