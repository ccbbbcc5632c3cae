"""What can be found wrong with a machine, a cluster and a cluster file before anything is trained on them."""
