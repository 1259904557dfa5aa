"""Load tests: arrivals, the generator, what was found and how sure it is."""
