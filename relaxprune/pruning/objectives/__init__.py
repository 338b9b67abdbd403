"""What layers minimise beside their Grams' error, from the gradients of the dense model's loss."""
