"""Certificates for the servers of tests, made by the program `openssl`."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from servers import missing


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths: an authority, what it signed for a server at 127.0.0.1, and an authority that nobody asked."""

    authority: Path
    certificate: Path
    key: Path
    stranger: Path


def certificates(folder: Path) -> Certificates:
    """Made anew in that folder."""
    for name in ("authority", "stranger"):
        _openssl(folder, "req", "-x509", "-nodes", *_new(name), "-days", "2", "-out", f"{name}.pem")
    _openssl(folder, "req", "-nodes", *_new("server"), "-out", "server.csr")
    (folder / "names").write_text("subjectAltName = IP:127.0.0.1\n")
    signed = ("-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
    _openssl(folder, "x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
    return Certificates(*(folder / name for name in ("authority.pem", "server.pem", "server.key", "stranger.pem")))


def _new(name: str) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    return (*curve, "-keyout", f"{name}.key", "-subj", f"/CN=penstock test {name}")


def _openssl(folder: Path, *arguments: str) -> None:
    if (program := shutil.which("openssl")) is None:
        missing("no openssl: install the package `openssl`")
        raise FileNotFoundError("openssl")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
