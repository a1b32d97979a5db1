"""The loop, which trains any job and does not know what is forgotten or kept."""
