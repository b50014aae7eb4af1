"""Stage `synapses`: clefts found by a 3-D U-Net, and which neurite gives to which across each of them."""
