"""Networks by name, as plain modules or as functions of one flat parameter vector."""

from dd.networks.block import closed_form, in_closed_form, is_closed
from dd.networks.features import captured, embed
from dd.networks.functional import Functional
from dd.networks.portion import portions
from dd.networks.saved import products, saved_bytes
from dd.networks.spec import NetworkSpec, build_network, magnitude, resolve_network

__all__ = [
    "Functional",
    "NetworkSpec",
    "build_network",
    "captured",
    "closed_form",
    "embed",
    "in_closed_form",
    "is_closed",
    "magnitude",
    "portions",
    "products",
    "resolve_network",
    "saved_bytes",
]
