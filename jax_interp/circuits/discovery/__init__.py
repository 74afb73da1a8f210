"""Finding circuits: orders and selection, ACDC, pruning with trained masks, importance of nodes, graph files of MIB."""
