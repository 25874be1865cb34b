"""The method plug-in interface, the method registry, the differentiable inner loop and the outer loop."""
