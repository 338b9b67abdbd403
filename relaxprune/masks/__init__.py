"""Masks as files: what they hold, how two differ, and the forms that other programs take."""
