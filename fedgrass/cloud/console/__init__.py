"""The web console: a fleet seen and driven in a browser, over the AWS APIs that the command line uses."""
