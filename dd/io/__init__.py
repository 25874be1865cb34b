"""All disk and network access: atomic writes, hashes, locks, downloads."""

from dd.io.atomic import atomic_folder, atomic_path, write_json, write_text
from dd.io.hashing import SEAL, Json, digest, holds, sealed, sha256_file, sha256_tensors
from dd.io.home import home, home_address, writable
from dd.io.lock import Taken, is_locked, locked, locks_work
from dd.io.object_store import ObjectStore, creates_once
from dd.io.paths import existing, is_address, user_path
from dd.io.state import State, load_state, previous, remove_state, save_state
from dd.io.tensors import load_tensors, read_tensors, save_tensors, tensor_in_file

__all__ = [
    "SEAL",
    "Json",
    "ObjectStore",
    "State",
    "Taken",
    "atomic_folder",
    "atomic_path",
    "creates_once",
    "digest",
    "existing",
    "holds",
    "home",
    "home_address",
    "is_address",
    "is_locked",
    "load_state",
    "load_tensors",
    "locked",
    "locks_work",
    "previous",
    "read_tensors",
    "remove_state",
    "save_state",
    "save_tensors",
    "sealed",
    "sha256_file",
    "sha256_tensors",
    "tensor_in_file",
    "user_path",
    "writable",
    "write_json",
    "write_text",
]
