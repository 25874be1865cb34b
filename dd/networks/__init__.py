"""Networks by name, as plain modules or as functions of one flat parameter vector."""

from dd.networks.features import captured, embed
from dd.networks.functional import Functional
from dd.networks.saved import products, saved_bytes
from dd.networks.spec import NetworkSpec, build, magnitude, resolve

__all__ = ["Functional", "NetworkSpec", "build", "captured", "embed", "magnitude", "products", "resolve", "saved_bytes"]
