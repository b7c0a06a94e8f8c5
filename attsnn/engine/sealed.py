"""JSON that shows any change since it was written: its last entry is its own SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"


def parse(data: bytes | str) -> Any:
    """The JSON values in some bytes. Raises ValueError for anything that is wrong with them."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def seal(content: Mapping[str, Any]) -> bytes:
    """`content` as JSON, with its seal."""
    body = {name: value for name, value in content.items() if name != SEAL}
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps({**body, SEAL: digest}, indent=1).encode() + b"\n"


def unseal(data: bytes) -> dict[str, Any]:
    """What was sealed, without the seal. Raises ValueError if any byte has changed.

    Files of older versions have no seal.
    """
    content = parse(data)
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} in place of an object")
    if SEAL in content and seal(content) != data:
        raise ValueError("its checksum is not that of what it holds")
    return {name: value for name, value in content.items() if name != SEAL}
