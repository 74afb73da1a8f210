"""The parts that all other packages use: errors, configs as JSON, files, objectives, optimizers, and basic layers."""
