"""The semidefinite bound of single rows, with cuts."""
