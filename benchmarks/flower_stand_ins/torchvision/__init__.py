"""Stand-in for ``torchvision``: the transforms that examples apply to images."""
