"""Whether runs go to Weights & Biases, and where its key is: what W&B documents, without importing it."""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def wanted(mode: str) -> str:
    """The setting `wandb` with W&B's own variables taken into account: auto, online, offline or off."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "off"
    modes = {"shared": "online", "dryrun": "offline", "disabled": "off"}
    named = os.environ.get("WANDB_MODE", "")
    return modes.get(named, named if named in ("online", "offline") else "auto")


def credentials() -> dict[str, str | None]:
    """Where W&B finds its key ("key", None = nowhere) and its server ("url"), as it documents; never the key itself."""
    config = configparser.ConfigParser(default_section="default", interpolation=None)
    path = Path(os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb"), "settings")
    with contextlib.suppress(OSError, configparser.Error, UnicodeError):
        config.read(path)
    kept = config.defaults()
    url = os.environ.get("WANDB_BASE_URL") or kept.get("base_url") or "https://api.wandb.ai"
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(name):
            return {"key": name, "url": url}
    if kept.get("api_key"):
        return {"key": str(path), "url": url}
    for place in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            hosts = netrc.netrc(os.path.expanduser(place)).hosts if place else {}
            if (hosts.get(urlparse(url).hostname or "") or ("", "", ""))[2]:
                return {"key": place, "url": url}
    return {"key": None, "url": url}
