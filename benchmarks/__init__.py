"""Each benchmark runs us and a peer side by side in one run, and prints one JSON line."""
