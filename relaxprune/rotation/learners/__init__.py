"""Where a rotation comes from: learners, each a function from what the rotation touches to an orthogonal matrix."""
