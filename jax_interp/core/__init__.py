"""The lowest floor: errors, configs as JSON, files, objectives, optimizers, and the layers that all models use."""
