"""Stage `consensus`: what two segmentations agree on, subvolume by subvolume; each split of either is kept."""
