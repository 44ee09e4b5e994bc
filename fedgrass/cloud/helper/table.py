"""What a helper keeps, in a table of its own account: written once, and never changed.

Its private key lies beside what it has answered, encrypted by a KMS key that serves its role alone. Whoever loses the table loses
both: a helper that has forgotten what it answered has no key either, and opens no box of an earlier round.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgrass.errors import DataError
from fedgrass.protocol.secure import KEY_BYTES
from fedgrass.protocol.writes import put_first
from fedgrass.secure.helper_state import Known
from fedgrass.secure.keys import public_text

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

# The item of the key: its kind and its id.
KEY = "key"
_ANSWERED, _DEVICE = "answered", "device"
# Writes at a time, where many devices are new.
_LANES = 8

_Item = Mapping[str, Any]


@dataclass(frozen=True)
class TableState:
    """It in a DynamoDB table, which any number of jobs may share: of two that write at once the first one's stays.

    Parameters
    ----------
    dynamodb, kms
        Clients of the helper's own account.
    table
        The table's name, with the keys ``kind`` and ``id``.
    kms_key
        ARN of the KMS key.
    fleet, name
        The helper's: nothing that was encrypted for another is decrypted.
    """

    dynamodb: DynamoDBClient
    kms: Any
    table: str
    kms_key: str
    fleet: str
    name: str

    @property
    def where(self) -> str:
        """The table's items."""
        return f"the items of kind {_DEVICE!r} in table {self.table}"

    def key(self) -> X25519PrivateKey:
        """Return the private key, of 32 bytes that KMS drew the first time, and that lie nowhere in clear.

        Raises
        ------
        DataError
            If what KMS gives back is not the key whose public half the table tells.
        """
        found = self._item(KEY, KEY) or self._made()
        plain = self.kms.decrypt(
            KeyId=self.kms_key, CiphertextBlob=found["secret"]["B"], EncryptionContext=self._context
        )["Plaintext"]
        told = found["public"]["S"]
        if len(plain) != KEY_BYTES or public_text(key := X25519PrivateKey.from_private_bytes(plain)) != told:
            raise DataError(
                f"table {self.table}: the helper's key there is not that of {told}, which it tells; somebody changed the item"
            )
        return key

    def known(self) -> Known:
        """Return all devices' keys."""
        pages = self.dynamodb.get_paginator("query").paginate(
            TableName=self.table,
            KeyConditionExpression="kind = :kind",
            ExpressionAttributeValues={":kind": {"S": _DEVICE}},
            ConsistentRead=True,
        )
        return {item["id"]["S"]: _told(item) for page in pages for item in page["Items"]}

    def keep(self, new: Mapping[str, tuple[str, float]]) -> Known:
        """Write an item for each, where there is none."""

        def kept(entry: tuple[str, tuple[str, float]]) -> tuple[str, tuple[str, float]]:
            thing, (key, since) = entry
            return thing, _told(self._first(_DEVICE, thing, key={"S": key}, since={"N": repr(since)}))

        # Each write takes some milliseconds, and a first round has as many as devices.
        with ThreadPoolExecutor(_LANES) as lanes:
            return dict(lanes.map(kept, new.items()))

    def first_for(self, identity: str, digest: str) -> str:
        """Write the round's item where there is none."""
        return str(self._first(_ANSWERED, identity, digest={"S": digest})["digest"]["S"])

    def _made(self) -> _Item:
        """Make the key, unless another job has: the one that is in the table counts."""
        # KMS draws it and encrypts it in one step, so that it is never written in clear.
        drawn = self.kms.generate_data_key(KeyId=self.kms_key, KeySpec="AES_256", EncryptionContext=self._context)
        public = public_text(X25519PrivateKey.from_private_bytes(drawn["Plaintext"]))
        return self._first(KEY, KEY, secret={"B": drawn["CiphertextBlob"]}, public={"S": public})

    @property
    def _context(self) -> dict[str, str]:
        return {"fedgrass:fleet": self.fleet, "fedgrass:helper": self.name}

    def _first(self, kind: str, name: str, **fields: AttributeValueTypeDef) -> _Item:
        """Write an item if there is none of that name, and return the one that is there."""
        item = {"kind": {"S": kind}, "id": {"S": name}, **fields}
        if put_first(self.dynamodb, self.table, item, key="kind"):
            return item
        found = self._item(kind, name)
        if found is None:
            raise DataError(
                f"table {self.table}: the {kind} {name!r} was there and is gone; a helper's table is never to be cleared: "
                "undo the helper instead (fedgrass helper destroy), and pin another key"
            )
        return found

    def _item(self, kind: str, name: str) -> _Item | None:
        found = self.dynamodb.get_item(
            TableName=self.table, Key={"kind": {"S": kind}, "id": {"S": name}}, ConsistentRead=True
        )
        return found.get("Item")


def _told(item: _Item) -> tuple[str, float]:
    return item["key"]["S"], float(item["since"]["N"])
