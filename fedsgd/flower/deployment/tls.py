"""Certificates for TLS on this machine, created for one deployment and removed with the deployment's folder."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY_DAYS = 30


@dataclass(frozen=True)
class TlsCertificates:
    """PEM files: the authority's certificate, which nodes trust, and the SuperLink's certificate and private key."""

    ca_certificate: Path
    certificate: Path
    key: Path


def create_certificates(folder: Path) -> TlsCertificates:
    """Create a certificate authority, and the SuperLink's certificate, in a folder. The authority's key is not stored."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, subject = _build_name("fedsgd deployment"), _build_name("localhost")
    signing_usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority = (
        _build_certificate(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signing_usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        _build_certificate(issuer, subject, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificates = TlsCertificates(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    certificates.ca_certificate.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    certificates.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    certificates.key.touch(mode=0o600)
    pem, key_format, no_password = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    certificates.key.write_bytes(server_key.private_bytes(pem, key_format, no_password))
    return certificates


def _build_name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _build_certificate(issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALIDITY_DAYS))
    )
