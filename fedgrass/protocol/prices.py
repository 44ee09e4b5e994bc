"""What AWS asks for what a round uses: list prices, for which users put their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_MACHINE = re.compile(r"(?P<family>ml\.[a-z0-9-]+)\.(?:(?P<times>\d{0,3})x)?(?P<size>medium|large)")


class Prices(BaseModel):
    """Dollars, as AWS lists them for us-east-1, free tiers and volume discounts left out; docs/costs.md says where from."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    s3_put: _Price = Field(default=0.005, description="1,000 objects put into S3")
    s3_get: _Price = Field(default=0.0004, description="1,000 objects read from S3")
    s3_month: _Price = Field(default=0.023, description="A GB kept in S3 for a month")
    s3_out: _Price = Field(default=0.09, description="A GB from S3 to devices")
    message: _Price = Field(default=1.0, description="A million messages of IoT Core")
    rule: _Price = Field(default=0.15, description="A million rules of IoT Core, and as much for actions")
    job_execution: _Price = Field(
        default=0.003, description="An execution of IoT Jobs: a device's part in a deployment"
    )
    table_write: _Price = Field(default=0.625, description="A million writes to DynamoDB on demand")
    table_read: _Price = Field(default=0.125, description="A million reads of it")
    function_second: _Price = Field(default=0.0000133334, description="A GB-second of Lambda on Arm")
    function_call: _Price = Field(default=0.20, description="A million calls of it")
    transition: _Price = Field(default=0.025, description="1,000 transitions of Step Functions")
    machines: Mapping[str, _Price] = Field(
        default={"ml.m5.large": 0.115},
        max_length=200,
        description="An hour of a machine of SageMaker Processing, by its type; other sizes of a family cost in proportion",
    )

    def of_machine(self, name: str) -> float | None:
        """Return what an hour of a machine costs; None if neither it nor its family has a price.

        Parameters
        ----------
        name
            Its type.

        Examples
        --------
        >>> Prices().of_machine("ml.m5.2xlarge"), Prices().of_machine("ml.c5.large")
        (0.46, None)
        """
        if name in self.machines:
            return self.machines[name]
        wanted = _size(name)
        for known, price in self.machines.items():
            found = _size(known)
            if wanted and found and wanted[0] == found[0]:
                return price * wanted[1] / found[1]
        return None


def _size(name: str) -> tuple[str, float] | None:
    """Return a machine's family, and its size in units of ``large``."""
    found = _MACHINE.fullmatch(name)
    if found is None or (found["size"] == "medium" and found["times"] is not None):
        return None
    if found["size"] == "medium":
        return found["family"], 0.5
    return found["family"], 1.0 if found["times"] is None else 2.0 * int(found["times"] or 1)
