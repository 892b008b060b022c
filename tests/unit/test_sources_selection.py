"""Which marked entries are active, beyond what whole SAEs show."""

import torch

from extraction_kit.sources.selection import AboveBound


def test_a_magnitude_that_rounds_to_nothing_is_not_active():
    bound = torch.zeros(3)
    scan = AboveBound(
        (bound,), gain=(torch.ones(3),), offset=(torch.tensor([-1.0, 0.0, 1.0]),)
    )(1)
    row = torch.tensor([0, 0, 0])
    scan.take(row, torch.arange(3), torch.ones(3), tile=0)
    assert [each.tolist() for each in scan.result()] == [[0, 0], [1, 2], [1, 2]]
