"""How like an adapter's examples an input is: a Gaussian process beside the adapter."""
