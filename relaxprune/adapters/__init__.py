"""Adapters for other libraries, one module each: it imports its host library and no other adapter."""
