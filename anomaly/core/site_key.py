"""The secret key of a site, from which the pseudonyms of its patients are made.

Patient numbers are short: a pseudonym made without a key can be reversed by trying all numbers. The key lies
outside all outputs, in ``~/.config/anomaly/site.key`` (``$XDG_CONFIG_HOME``), or where ``ANOMALY_SITE_KEY_FILE``
says. It is made on first use. The same key gives the same pseudonyms; without it they cannot be made again.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from pathlib import Path

from anomaly.core.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "ANOMALY_SITE_KEY_FILE"
KEY_BYTES = 32


def site_key() -> bytes:
    """Return the key of this site; make it if there is none.

    Raises
    ------
    ConfigError
        The file cannot be read or made, or holds no key.
    """
    path = site_key_path()
    try:
        if not path.exists():
            _create(path)
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the site key {path} can be neither read nor made ({error}); pseudonyms of patients are made with it; "
            f"set {VARIABLE} to a file that this account can read, or to one in a folder that it can write to"
        ) from error
    if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text):
        raise ConfigError(
            f"{path} holds no site key: expected {2 * KEY_BYTES} hex digits; restore it from a backup, or delete "
            "it, so that a new one is made (patients then get new pseudonyms)"
        )
    return bytes.fromhex(text)


def site_key_path() -> Path:
    """Return where the key of this site lies.

    Raises
    ------
    ConfigError
        The account has no home folder, and nothing names another place.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if folder := os.environ.get("XDG_CONFIG_HOME"):
        return Path(folder) / "anomaly" / "site.key"
    try:
        return Path.home() / ".config" / "anomaly" / "site.key"
    except RuntimeError as error:
        raise ConfigError(f"this account has no home folder for the site key; set {VARIABLE} to a file") from error


def _create(path: Path) -> None:
    """Write a new key that only this account can read, unless another process has just made one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(KEY_BYTES) + "\n")
        os.link(temporary, path)  # unlike a rename, a link never replaces the key of another process
    except FileExistsError:
        return
    finally:
        temporary.unlink(missing_ok=True)
    log.warning(
        "made the site key %s; pseudonyms of patients are made with it: keep it secret, and keep a backup", path
    )
