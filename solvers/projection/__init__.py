"""Methods that project onto the polytope: one solver per file."""
