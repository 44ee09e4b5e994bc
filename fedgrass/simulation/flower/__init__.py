"""A Flower app directory, run as it is: its ServerApp drives rounds, its ClientApp trains on virtual devices."""
