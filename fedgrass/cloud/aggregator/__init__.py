"""The Processing job of a round: updates in, a checked, evaluated and released model out."""
