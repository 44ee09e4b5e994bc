"""Start the trainer as the nucleus does: ``python -m components.trainer --work DIR --store DIR``."""

from components.trainer.trainer import Trainer
from fedgrass.edge.component import Component, Device, main


def start(device: Device) -> Component:
    """Make and start the component."""
    trainer = Trainer(device)
    trainer.start()
    return trainer


if __name__ == "__main__":
    main("components.trainer", "Trains the fleet's model on this device's data when a round asks for it.", start)
