"""The models on this machine, for whoever started the program and no one else: what each needs, and how it is run."""
