"""Files and folders: writing them whole, who holds them, where stores lie, what is recorded of them."""
