"""The plug-in contract, the registry, the differentiable inner loop, and the outer loop that drives them."""
