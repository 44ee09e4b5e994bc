"""Start the heartbeat as the nucleus does: ``python -m components.heartbeat --work DIR --store DIR``."""

from components.heartbeat.heartbeat import Heartbeat
from fedgrass.edge.component import Component, Device, main


def start(device: Device) -> Component:
    """Make and start the component."""
    heartbeat = Heartbeat(device)
    heartbeat.start()
    return heartbeat


if __name__ == "__main__":
    main("components.heartbeat", "Tells the cloud that this device is alive and able to train.", start)
