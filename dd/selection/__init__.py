"""Selection algorithms on tensors: scores and features in, indices out."""
