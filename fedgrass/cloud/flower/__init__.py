"""A Flower app on a fleet: its ServerApp runs on the operator's machine, and each of its rounds is one of the fleet's."""
