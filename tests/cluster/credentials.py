"""Keys, certificates, tokens and kubeconfigs of one cluster, in one directory that only root reads."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import addresses, commands

USERS = {
    "admin": ("admin", "system:masters"),
    "manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}
NAMES = f"IP:{addresses.SERVICE},IP:{addresses.RACK},IP:127.0.0.1,DNS:kubernetes.default.svc,DNS:localhost"
EXTENSIONS = {
    "ca": "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,digitalSignature\n",
    "server": f"keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\nsubjectAltName={NAMES}\n",
    "client": "keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    directory: Path

    def file(self, name: str) -> str:
        return str(self.directory / name)

    def make(self) -> None:
        """An authority, the API server's certificate and its client one for kubelets, the key of service accounts."""
        self.directory.mkdir(mode=0o700)
        for name in ("ca", "server", "client", "accounts"):
            commands.run(
                *("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
                *("-out", self.file(f"{name}.key")),
            )
        commands.run("openssl", "pkey", "-in", self.file("accounts.key"), "-pubout", "-out", self.file("accounts.pub"))
        self._certify("ca", "/CN=virtnet test authority")
        self._certify("server", "/CN=kube-apiserver")
        self._certify("client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
        self._write_tokens()

    def _certify(self, name: str, subject: str) -> None:
        request = self.file(f"{name}.csr")
        (self.directory / f"{name}.ext").write_text(EXTENSIONS[name] + "subjectKeyIdentifier=hash\n" + _issuer(name))
        commands.run("openssl", "req", "-new", "-key", self.file(f"{name}.key"), "-subj", subject, "-out", request)
        signer = (
            ("-signkey", self.file("ca.key"))
            if name == "ca"
            else ("-CA", self.file("ca.crt"), "-CAkey", self.file("ca.key"), "-CAcreateserial")
        )
        commands.run(
            *("openssl", "x509", "-req", "-in", request, *signer, "-days", "30"),
            *("-extfile", self.file(f"{name}.ext"), "-out", self.file(f"{name}.crt")),
        )

    def _write_tokens(self) -> None:
        """Every user that there can be: the API server reads the file only once."""
        users = USERS | {f"node{n}": (f"system:node:node{n}", "system:nodes") for n in range(1, addresses.MOST + 1)}
        lines = []
        for name, (user, group) in users.items():
            token = secrets.token_hex(16)
            lines.append(f'{token},{user},{name},"{group}"\n')
            Path(self.kubeconfig(name)).write_text(json.dumps(self._kubeconfig(name, token), indent=1))
        (self.directory / "tokens.csv").write_text("".join(lines))

    def kubeconfig(self, name: str) -> str:
        return self.file(f"{name}.kubeconfig")

    def _kubeconfig(self, name: str, token: str) -> dict[str, object]:
        cluster = {"server": addresses.API, "certificate-authority": self.file("ca.crt")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": "virtnet", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": "virtnet", "user": name}}],
        }


def _issuer(name: str) -> str:
    return "" if name == "ca" else "authorityKeyIdentifier=keyid\n"
