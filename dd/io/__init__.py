"""The one place that touches disk and network: atomic writes, hashes, locks, downloads."""

from dd.io.atomic import atomic_path, write_json, write_text
from dd.io.hashing import digest, sha256_file, sha256_tensors
from dd.io.home import home, writable
from dd.io.lock import locked
from dd.io.paths import existing, user_path
from dd.io.tensors import load_tensors, save_tensors

__all__ = [
    "atomic_path",
    "digest",
    "existing",
    "home",
    "load_tensors",
    "locked",
    "save_tensors",
    "sha256_file",
    "sha256_tensors",
    "user_path",
    "writable",
    "write_json",
    "write_text",
]
