"""What a training step costs, from shapes alone: memory by kind, FLOPs, bytes over each mesh axis, time."""
