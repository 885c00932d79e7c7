"""One network learns: batches, steps, optimizer, early stopping, checkpoints, devices, several processes."""
