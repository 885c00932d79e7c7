"""Routes that need a token."""
