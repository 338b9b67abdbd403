"""Plugs for other libraries, one module each: it imports its host, and no other adapter."""
