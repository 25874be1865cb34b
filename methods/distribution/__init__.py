"""Distribution and gradient matching: a network's features or gradients agree on synthetic and real images."""
