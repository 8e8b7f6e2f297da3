"""Pre-training of backbones as image classifiers (DeepLabv3+, 1802.02611)."""
