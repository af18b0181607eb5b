"""What a network costs: parameters, multiply-accumulates, time and memory, as a whole and layer by layer."""
