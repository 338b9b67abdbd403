"""Models: where they come from, their layers and blocks, and how they are saved."""
