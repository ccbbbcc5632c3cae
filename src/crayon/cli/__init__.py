"""From words on the command line to calls of the package, and from mistakes to one sentence."""
