"""A fitted policy by what names it: a file that `salvage register --out` wrote, or a URI of MLflow's registry."""

from __future__ import annotations

import json
from pathlib import Path

from salvage.errors import SalvageError
from salvage.policies.fitted import Fitted
from salvage.tables.contents import seems

CHAMPION = "models:/salvage-router@champion"


def load(uri: str) -> Fitted:
    """Return the policy; only a URI needs MLflow.

    Raises
    ------
    SalvageError
        Where there is no such file or registered policy, or it is another kind of file.
    """
    if uri.startswith("models:/") or not (uri.endswith(".json") or Path(uri).exists()):
        from salvage.project import tracking
        from salvage.serving import registry

        tracking.connect()
        return registry.load(uri)
    try:
        data = Path(uri).read_bytes()
    except OSError as error:
        raise SalvageError(f"{uri} cannot be read: {error.strerror or error}; check the path") from None
    try:
        return Fitted.from_dict(json.loads(data.decode("utf-8-sig")))
    except (ValueError, KeyError, TypeError, AttributeError):  # not JSON, or not of ours
        kind = seems(data)
        told = f"{uri} is no policy file" + (f" but seems to be {kind}" if kind not in ("", "JSON") else "")
        raise SalvageError(f"{told}; salvage register --out FILE.json writes one") from None
