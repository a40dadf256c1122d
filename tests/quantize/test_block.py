"""What the table of a tied model is rounded by; tests of whole blocks are in test_sequential.py."""

import pytest
import torch

from edgec.quantize.block import _importance_of_table

HIDDEN = 6
TABLE = torch.randn((50, HIDDEN), generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 3, HIDDEN)
INPUTS = torch.randn((400, HIDDEN), generator=torch.Generator().manual_seed(1)) * torch.linspace(2, 0.1, HIDDEN)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e4])
def test_the_error_of_logits_and_that_of_looked_up_rows_count_the_same(size):
    # Inputs that have nothing in common: what they add to the square of the logits is a sum over columns.
    x = torch.linalg.qr(INPUTS).Q * INPUTS.norm(dim=0) * size
    importance = _importance_of_table(TABLE, x.square().mean(0))
    for column in range(HIDDEN):
        change = torch.zeros_like(TABLE)
        change[:, column] = 0.01
        of_logits = (x @ change.T).square().sum() / (x @ TABLE.T).square().sum()
        of_rows = change.square().sum() / TABLE.square().sum()
        counted = (importance * change.square()).sum()
        torch.testing.assert_close(counted, of_logits + of_rows, rtol=1e-4, atol=0)


def test_tables_and_inputs_of_zeros_have_a_finite_importance():
    for table, importance in ((torch.zeros_like(TABLE), torch.ones(HIDDEN)), (TABLE, torch.zeros(HIDDEN))):
        assert (
            _importance_of_table(table, importance).isfinite() & (_importance_of_table(table, importance) > 0)
        ).all()
