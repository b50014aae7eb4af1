"""What the U-Nets of several stages share: weights by name, models on disk, and training that goes on after a kill."""
