"""The client: the `trimtab` command line and the dashboard. Of the engine it knows the client and the protocol only."""
