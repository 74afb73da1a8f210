"""What every floor above stands on: errors, configs as JSON, files written whole, optimizers, names of leaves."""
