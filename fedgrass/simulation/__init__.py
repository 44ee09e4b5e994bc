"""Federated rounds with virtual devices: the trainer's core, the codec, the aggregator and the gate are the real ones.

Only the transport and the clock are simulated. See docs/simulation.md.
"""
