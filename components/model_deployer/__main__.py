"""Start the model deployer as the nucleus does: ``python -m components.model_deployer --work DIR --store DIR``."""

from components.model_deployer.deployer import ModelDeployer
from fedgrass.edge.component import Component, Device, main


def start(device: Device) -> Component:
    """Make and start the component."""
    deployer = ModelDeployer(device)
    deployer.start()
    return deployer


if __name__ == "__main__":
    main("components.model_deployer", "Owns the models on this device and tells which one is active.", start)
