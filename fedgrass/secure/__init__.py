"""Secure aggregation: each device uploads one masked update and may vanish; a few helpers upload the sums of the masks.

The parts, in the order of a round: `quantize` and `masked` on a device, `request` in the cloud, `helper` on a helper,
`unmask` in the cloud. docs/secure-aggregation.md has the protocol.
"""
