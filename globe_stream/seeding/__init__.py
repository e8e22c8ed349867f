"""Warm starts: proxies -> Gram -> atoms -> codes."""
