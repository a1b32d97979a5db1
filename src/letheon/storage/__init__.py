"""Files and folders: writing them whole, locks, the cache folder, and records of their origin."""
