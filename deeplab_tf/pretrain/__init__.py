"""Pre-trains backbones as image classifiers (DeepLabv3+, 1802.02611)."""
