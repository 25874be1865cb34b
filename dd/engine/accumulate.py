"""A sum of losses in the memory of one of them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dd.engine import parallel

Terms = Mapping[str, Tensor]


def accumulated(
    losses: Sequence[Callable[[], Terms]], variable: Tensor, names: Sequence[str], *, shared: bool = True
) -> Terms:
    """The sum of several losses in the memory of one: each is differentiated before the next is begun.

    Args:
        losses: functions that return named terms; none where this process has nothing to add.
        variable: what they are differentiated by, the only thing a gradient is kept for.
        names: of the terms.
        shared: with several processes the sum runs over the losses of all of them.

    Returns:
        Terms whose sum has the value and, by `variable`, the gradient of the sum.
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
    carrier = (variable * gradient).sum()  # linear: its gradient is `gradient`
    first = names[0]
    return values | {first: values[first] + carrier - carrier.detach()}
