"""A device's key and certificate: the key is made here and never leaves, IoT Core signs the certificate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.cloud.infrastructure.script import is_gone, removed
from fedgrass.errors import ConfigurationError
from fedgrass.files import write_atomically

if TYPE_CHECKING:
    from mypy_boto3_iot import IoTClient

CERTIFICATE = "device.pem.crt"
KEY = "private.pem.key"


def subject(fleet: str, thing: str) -> str:
    """Return the common name of a device's certificate, by which it is known before anything refers to it."""
    # A digest, as the name may have 64 characters at most and things' names may be longer.
    return f"fedgrass-{hashlib.sha256(f'{fleet} {thing}'.encode()).hexdigest()[:40]}"


def make_key(folder: Path) -> None:
    """Make the private key, unless ``folder`` has it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    # A second key would leave the device with a certificate that does not fit it.
    if (folder / KEY).exists():
        return
    # RSA with 2,048 bits: what IoT Core signs and both nuclei load.
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    plain = serialization.NoEncryption()
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Owner only, and the folder likewise: whoever has the key is the device.
    write_atomically(folder / KEY, content)
    (folder / KEY).chmod(0o600)


def request(folder: Path, common_name: str) -> str:
    """Return a request for a certificate of the folder's key; raises `ConfigurationError` if that is not one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    try:
        key = serialization.load_pem_private_key((folder / KEY).read_bytes(), password=None)
    except ValueError as error:
        raise ConfigurationError(
            f"{folder / KEY}: is not a private key in PEM ({error}); remove it for a new one"
        ) from error
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def is_ours(iot: IoTClient, certificate_arn: str, common_name: str) -> bool:
    """Say whether a certificate was made here for a device.

    Parameters
    ----------
    iot
        The boto3 client.
    certificate_arn
        ARN of the certificate.
    common_name
        Name that `scripts/provision` gives the certificates of this device and fleet.

    Returns
    -------
    bool
        False for a certificate that is gone, too.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        described = iot.describe_certificate(certificateId=certificate_arn.rpartition("/")[2])
        found = x509.load_pem_x509_certificate(described["certificateDescription"]["certificatePem"].encode())
    except (iot.exceptions.ClientError, ValueError) as error:
        if isinstance(error, ValueError) or is_gone(error):
            return False
        raise
    return common_name in [attribute.value for attribute in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def forsaken(iot: IoTClient, common_name: str) -> Iterator[str]:
    """Yield certificates made for the device but never attached, because the run that made them was stopped."""
    # The newest first; certificates of a stopped run are usually among them. They are inactive until attached.
    pages = iot.get_paginator("list_certificates").paginate(ascendingOrder=False)
    for arn in [
        entry["certificateArn"] for page in pages for entry in page["certificates"] if entry["status"] == "INACTIVE"
    ]:
        if is_ours(iot, arn, common_name):
            yield arn


def remove_certificate(iot: IoTClient, certificate_arn: str, thing: str) -> None:
    """Take a certificate off a thing, if it is on it, and delete it, unless another thing has it too.

    Its policies stay attached until it is gone: by them the next run would find it.

    Parameters
    ----------
    iot
        The boto3 client.
    certificate_arn
        ARN of the certificate.
    thing
        Name of the thing.
    """
    identifier = certificate_arn.rpartition("/")[2]
    # An operator may have put the certificate on another thing; it must keep working there.
    shared = set(iot.list_principal_things(principal=certificate_arn)["things"]) - {thing}
    if not shared:
        removed(iot.update_certificate, certificateId=identifier, newStatus="INACTIVE")
    removed(iot.detach_thing_principal, thingName=thing, principal=certificate_arn)
    if not shared:
        removed(iot.delete_certificate, certificateId=identifier, forceDelete=True)
