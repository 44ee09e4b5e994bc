"""An AWS account on this machine: moto's server and the thin layer that moto lacks, behind one endpoint.

State is in memory and ends with the process; only logs and Processing folders are written, under the state folder.
"""
