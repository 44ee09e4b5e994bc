"""The main job on this machine: a fleet that learns handwritten digits, in rounds, from two commands."""
