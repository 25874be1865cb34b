"""Gradient accumulation: the sum of several losses in the memory of one."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dd.engine import parallel

Terms = Mapping[str, Tensor]


def accumulated(
    losses: Sequence[Callable[[], Terms]], variable: Tensor, names: Sequence[str], *, shared: bool = True
) -> Terms:
    """Sum several losses in the memory of one: each is differentiated before the next is computed.

    Args:
        losses: functions that return named terms; empty if this process has nothing to add.
        variable: the tensor to differentiate with respect to; no other tensor gets a gradient.
        names: names of the terms.
        shared: with several processes, sum over the losses of all of them.

    Returns:
        Terms whose sum has the value of the total loss and its gradient with respect to `variable`.
    """
    across = shared and parallel.is_parallel()
    if len(losses) == 1 and not across:
        return losses[0]()
    values = dict.fromkeys(names, variable.new_zeros(()))
    gradient = torch.zeros_like(variable)
    for loss in losses:
        terms = loss()
        gradient += torch.autograd.grad(torch.stack(list(terms.values())).sum(), variable)[0]
        values = {name: values[name] + terms[name].detach() for name in names}
    if across:
        parallel.summed(gradient)
        values = dict(zip(names, parallel.summed(torch.stack(list(values.values()))), strict=True))
    carrier = (variable * gradient).sum()  # linear in `variable`, so its gradient is `gradient`
    first = names[0]
    return values | {first: values[first] + carrier - carrier.detach()}
