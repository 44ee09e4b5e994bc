"""S3 URIs, taken apart."""

from __future__ import annotations

from urllib.parse import urlsplit

from fedgrass.errors import ConfigurationError


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an S3 URI.

    Raises
    ------
    ConfigurationError
        If it is not one.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise ConfigurationError(f"{uri!r} is not an S3 URI, such as s3://bucket/prefix.")
    return parts.netloc, parts.path.lstrip("/")
