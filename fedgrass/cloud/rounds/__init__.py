"""Rounds in the cloud: small functions around two tables, and the state machine that calls them in order.

Whoever opens a round holds the fleet's lock, which names the execution; whatever ends the execution frees it. Every
function can run twice with one effect, because Lambda, EventBridge and topic rules all deliver at least once.
"""
