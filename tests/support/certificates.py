"""Certificates that vouch for themselves."""

import subprocess
from pathlib import Path


def self_signed(
    certificate: Path, key: Path, name: str = "localhost", alternative: str = "DNS:localhost"
) -> None:
    """For two days; each file is replaced all at once, the key first."""
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}")
    new = [file.with_name(f"new-{file.name}") for file in (key, certificate)]
    command = ["openssl", "req", "-x509", *kind, *names, "-keyout", new[0], "-out", new[1]]
    subprocess.run(command, check=True, capture_output=True)
    new[0].replace(key)
    new[1].replace(certificate)
