"""What layers read: batches, propagation through the blocks, and statistics of the inputs."""
