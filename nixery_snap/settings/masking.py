"""Settings as they may be shown: on a screen, in a log, in a bug report."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from nixery_snap.settings.model import Settings
from nixery_snap.settings.values import masked

_HOLDS_SECRETS: Final = re.compile(r"token|secret|passw")  # as the setting access-tokens of Nix does


def shown_settings(settings: Settings) -> str:
    """All of them, as JSON, without passwords and tokens."""
    shown = _masked(settings.model_dump(mode="json"))
    shown["nix"]["options"] = {
        name: "***" if _HOLDS_SECRETS.search(name) else text for name, text in shown["nix"]["options"].items()
    }
    return json.dumps(shown, indent=2)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list):
        return list(map(_masked, value))
    return {name: _masked(one) for name, one in value.items()} if isinstance(value, dict) else value
