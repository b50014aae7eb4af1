"""Stage `connectome`: the wiring diagram, a weighted directed graph with its neurons and synapses as tables."""
